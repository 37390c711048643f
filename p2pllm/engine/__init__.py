"""Everything torch: cutting a model into stages, KV storage, sampling."""
