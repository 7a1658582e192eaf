"""A Llama small enough to be written by hand: one layer, random weights, a token for each byte, a head of letters only.

It says nothing that means anything, but always the same, and in letters: what a model server makes of it is an answer.
"""

from __future__ import annotations

import json
import math
import random
import string
import struct
from array import array
from pathlib import Path
from typing import Any

HIDDEN, INNER, HEADS, POSITIONS = 16, 32, 2, 512
BOS, EOS = 256, 257
VOCABULARY = 258
TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant:"


def write(folder: Path) -> None:
    """A model's files, as `transformers` reads them."""
    _json(folder / "config.json", CONFIG)
    _json(folder / "generation_config.json", {"do_sample": False, "bos_token_id": BOS, "eos_token_id": EOS})
    _json(folder / "tokenizer.json", _tokenizer())
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "clean_up_tokenization_spaces": False}
    _json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE, **special},
    )
    (folder / "model.safetensors").write_bytes(_weights())


CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "num_hidden_layers": 1,
    "max_position_embeddings": POSITIONS,
    "vocab_size": VOCABULARY,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "dtype": "float32",
}


def _json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value))


def _tokenizer() -> dict[str, Any]:
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": BOS, "content": "<s>", **flags}, {"id": EOS, "content": "</s>", **flags}],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {"type": "BPE", "vocab": {name: index for index, name in enumerate(_bytes())}, "merges": []},
    }


def _bytes() -> list[str]:
    """The names of the 256 bytes as byte-level BPE has them: themselves where they can be seen."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = iter(range(256, 512))
    return [chr(each) if each in seen else chr(next(hidden)) for each in range(256)]


def _weights() -> bytes:
    """The tensors in the safetensors format: the length of a JSON head, the head, the numbers."""
    chance = random.Random(7)
    letters = {ord(each) for each in string.ascii_lowercase}
    layer = "model.layers.0"
    shapes = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCABULARY, HIDDEN),
        f"{layer}.input_layernorm.weight": (HIDDEN,),
        f"{layer}.post_attention_layernorm.weight": (HIDDEN,),
        **{f"{layer}.self_attn.{each}_proj.weight": (HIDDEN, HIDDEN) for each in "qkvo"},
        f"{layer}.mlp.gate_proj.weight": (INNER, HIDDEN),
        f"{layer}.mlp.up_proj.weight": (INNER, HIDDEN),
        f"{layer}.mlp.down_proj.weight": (HIDDEN, INNER),
    }
    head: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, shape in shapes.items():
        values = array("f", [1.0 if "norm" in name else chance.gauss(0, 1) for _ in range(math.prod(shape))])
        if name == "lm_head.weight":
            for row in set(range(VOCABULARY)) - letters:
                values[row * HIDDEN : (row + 1) * HIDDEN] = array("f", bytes(4 * HIDDEN))
        data = values.tobytes()
        head[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + body
