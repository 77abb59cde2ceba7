"""How many CPU threads a computation uses."""


def limit_threads(count: int | None) -> None:
    """Limit what the calling thread computes with torch and FAISS to ``count`` threads; None leaves all cores.

    OpenMP's limits belong to the thread that sets them, so each thread that computes calls this. Raises `MissingExtra`.
    """
    if count is None:
        return
    import torch

    from kgtrace_store.search import set_search_threads

    torch.set_num_threads(count)
    set_search_threads(count)
