// The public API: addresses, answers, problems, the key, and which generation answers.

import { session } from "./storage.js";

/**
 * @typedef {{id: number, label: string, name: string | null}} Named
 * @typedef {{head: Named, relation: Named, tail: Named}} Triple
 * @typedef {Record<string, string | number | boolean | null | undefined>} Parameters
 */

/** The media type of explanations as graphs. */
export const GRAPHML = "application/graphml+xml";

const KEY = "kgtrace-key";
const EXACTLY = "X-Kgtrace-Generation-Exactly";

/** What went wrong, as the service's problem document says it; status 0 where there was no answer. */
export class Problem extends Error {
  /**
   * @typedef {{label: string, name: string | null}} Nearest
   * @param {{status: number, title: string, detail: string, unknown?: string, nearest?: Nearest[]}} document
   */
  constructor({ status, title, detail, unknown = "", nearest = [] }) {
    super(detail);
    this.status = status;
    this.title = title;
    this.detail = detail;
    this.unknown = unknown;
    this.nearest = nearest;
  }
}

/** Tells of `unauthorized`, and of a `generation` other than the one that the page shows. */
export const events = new EventTarget();

/** The generation that the page shows, once there was an answer. */
let shown = null;

/** Forget which generation the page shows: it is about to be drawn anew. */
export function forgetGeneration() {
  shown = null;
}

/** @param {string} key Kept for as long as the tab is open, and sent in a header alone. */
export function setKey(key) {
  session.setItem(KEY, key);
}

/** Whether requests carry a key, so that a plain link to one would be refused. */
export function hasKey() {
  return session.getItem(KEY) !== null;
}

/**
 * The address of a call, relative to the page. Parameters that are empty are left out.
 * @param {string} route @param {Parameters} [parameters]
 */
export function address(route, parameters = {}) {
  const given = Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const query = new URLSearchParams(given.map(([name, value]) => [name, String(value)])).toString();
  return `v1/${route}${query && "?"}${query}`;
}

/**
 * Call the API.
 * @param {string} path From `address`. @param {AbortSignal} [signal]
 * @param {string} [generation] The one that is to answer, if not the live one.
 * @returns {Promise<any>} The answer. Rejects with `Problem`, or with the signal's reason.
 */
export function get(path, signal, generation) {
  return answered(path, { signal }, {}, generation);
}

/** Call the API with a question in the body. @param {string} route @param {object} question */
export function post(route, question, signal, generation) {
  const body = JSON.stringify(question);
  const request = { signal, method: "POST", body };
  return answered(address(route), request, { "Content-Type": "application/json" }, generation);
}

async function answered(path, request, headers, generation) {
  const { signal } = request;
  const response = await fetched(path, request, { ...headers, ...(generation && { [EXACTLY]: generation }) });
  if (!generation) follow(response.headers.get("X-Kgtrace-Generation"));
  const document = await read(response, signal);
  if (response.ok) return document;
  if (response.status === 401) events.dispatchEvent(new Event("unauthorized"));
  throw new Problem(document);
}

/** The answer in another format, as text. @param {string} path From `address`. @param {string} accept Its media type. */
export async function getFile(path, accept) {
  const response = await fetched(path, {}, { Accept: accept });
  if (response.ok) return response.text();
  throw new Problem(await read(response));
}

async function fetched(path, request, headers) {
  const key = session.getItem(KEY);
  const all = { Accept: "application/json", ...headers, ...(key !== null && { Authorization: `Bearer ${key}` }) };
  try {
    return await fetch(path, { ...request, headers: all });
  } catch (error) {
    request.signal?.throwIfAborted();
    const detail = "The service does not answer. Is it running, and is this machine still connected to it?";
    throw new Problem({ status: 0, title: "No connection", detail });
  }
}

async function read(response, signal) {
  try {
    return await response.json();
  } catch (error) {
    signal?.throwIfAborted();
    const detail = `What came back is not the service's answer (status ${response.status}).`;
    throw new Problem({ status: response.status, title: "Not an answer", detail });
  }
}

function follow(generation) {
  if (!generation || generation === "none") return;
  shown ??= generation;
  if (generation !== shown) events.dispatchEvent(new CustomEvent("generation", { detail: { shown, generation } }));
}
