"""The LLM sidecar: one small process (or object) through which every model call goes."""
