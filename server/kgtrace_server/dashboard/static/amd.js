// D3's file registers itself with an AMD loader; this is as much of one as it needs.
globalThis.require = { defined: () => false };
globalThis.define = (name, dependencies, factory) => factory((globalThis.d3 = {}));
