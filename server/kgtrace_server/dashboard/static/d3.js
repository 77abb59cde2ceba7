// D3 as a module. The order of these lines is that in which they run.
import "./amd.js";
import "../vendor/d3.v7.min.def.js";

export default globalThis.d3;
