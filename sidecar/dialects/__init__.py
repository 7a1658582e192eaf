"""The table of wire languages. A provider's row says which of them it speaks; two of them can be translated."""

from __future__ import annotations

from typing import Final

from sidecar.dialects import chat, completions, count_tokens, embeddings, messages
from sidecar.dialects.neutral import Conversation, Dialect

CONVERSATIONS: Final[dict[str, Conversation]] = {"chat": chat, "messages": messages}
DIALECTS: Final[dict[str, Dialect]] = {
    **CONVERSATIONS,
    "completions": completions,
    "embeddings": embeddings,
    "count_tokens": count_tokens,
}
