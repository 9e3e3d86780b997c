"""Files that a download has not finished: by their names."""

_ENDINGS = (
    ".part",
    ".partial",
    ".incomplete",  # huggingface_hub
    ".downloadInProgress",  # llama.cpp
    "-partial",  # ollama
    ".crdownload",
    ".aria2",
)


def unfinished(name: str) -> str:
    """The end of a name that says that the file is still being downloaded, or ""."""
    return next((ending for ending in _ENDINGS if name.endswith(ending)), "")
