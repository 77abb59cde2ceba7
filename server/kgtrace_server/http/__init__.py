"""The service over HTTP: routes, the worker that computes, reloading, metrics, logs."""
