"""The tokenizer and the text encoder of the teacher `shapes`.

    python eval/shapes_text.py runs/shapes-parts

writes runs/shapes-parts/tokenizer and /text_encoder, in half a minute on one core. A CLIP tokenizer
whose merges make every word of `data/captions.py` one token, and a small CLIP text encoder, trained
to tell what a caption names, at its end and at a token of its padding.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import torch
from pretrain import Plan, command_folder, train
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from stepdistill.data.captions import captions, read
from stepdistill.data.compositions import (
    ATTRIBUTES,
    AXES,
    COLOURS,
    Scenes,
    some,
)
from stepdistill.data.loader import stream
from stepdistill.data.shapes import SHAPES

LENGTH = 20  # tokens of a prompt
WIDTH = 64
UNSAID = -100
PLAN = Plan(steps=700, batch=64, lr=2e-3, fall=0.5, decay=0.99)
START, END = "<|startoftext|>", "<|endoftext|>"
TOLD = {
    **ATTRIBUTES,
    "axis": len(AXES) + 1,
    "other colour": len(COLOURS),
    "other shape": len(SHAPES),
}


def tokenizer(words: list[str]) -> CLIPTokenizer:
    """One whose merges make each of these words one token; others are spelt."""
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789,.'-"]
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    kind = trainers.BpeTrainer(
        vocab_size=10_000,
        min_frequency=1,
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator([" ".join(words)], kind)
    learnt = json.loads(bpe.to_str())["model"]
    vocabulary = dict(learnt["vocab"])
    for token in (*letters, *(f"{letter}</w>" for letter in letters), START, END):
        vocabulary.setdefault(token, len(vocabulary))
    merges = [tuple(pair) for pair in learnt["merges"]]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)


def sizes(made: CLIPTokenizer, layers: int) -> CLIPTextConfig:
    """Of a text encoder for the tokens of this tokenizer."""
    return CLIPTextConfig(
        vocab_size=len(made),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        hidden_act="gelu",
        bos_token_id=made.bos_token_id,
        eos_token_id=made.eos_token_id,
        pad_token_id=made.pad_token_id,
    )


def sayings(n: int, generator: torch.Generator, said: float = 0.88) -> list[str]:
    """Captions of scenes that training may see, a half of them with two objects."""
    one, pair = (some(n, two, False, generator) for two in (False, True))
    two = torch.rand(n, generator=generator) < 0.5
    return captions(Scenes.numbered(torch.where(two, pair, one)), generator, said)


def told(texts: list[str]) -> Tensor:
    """What captions name (n, attributes of TOLD), UNSAID where they do not."""
    rows = []
    for named in map(read, texts):
        first, *rest = named.objects
        other = rest[0] if rest else {}
        axis = 0 if named.axis is None else 1 + named.axis
        row = {**first, "ground": named.ground, "position": named.position, "axis": axis}
        row |= {f"other {name}": other.get(name) for name in ("colour", "shape")}
        rows.append([UNSAID if row.get(name) is None else row[name] for name in TOLD])
    return torch.tensor(rows)


Read = Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]


def learn(
    folder: Path, made: CLIPTokenizer, net: nn.Module, read_from: Read, plan: Plan = PLAN
) -> None:
    """Train and measure an encoder. read_from(tokens, end, later): what heads read from it, each
    (n, WIDTH), by its name; end, later: (n,) the places of the end and of a token of the padding.
    """
    heads = nn.ModuleList(nn.Linear(WIDTH, count) for count in TOLD.values())

    def logits(texts: list[str], generator: torch.Generator) -> dict[str, list[Tensor]]:
        tokens = made(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        end = (tokens == made.eos_token_id).int().argmax(1)
        later = end + (torch.rand(len(texts), generator=generator) * (LENGTH - end)).long()
        found = read_from(tokens, end, later)
        return {name: [head(state) for head in heads] for name, state in found.items()}

    def loss(n: int, generator: torch.Generator) -> Tensor:
        texts = sayings(n, generator)
        asked, found = told(texts), logits(texts, generator)
        parts = [
            nn.functional.cross_entropy(values, asked[:, i], ignore_index=UNSAID, reduction="sum")
            for place in found.values()
            for i, values in enumerate(place)
        ]
        return torch.stack(parts).sum() / (asked != UNSAID).sum()

    train(folder, nn.ModuleList([net, heads]), loss, plan)
    with torch.no_grad():
        fresh = sayings(2000, stream(0, 13), said=1.0)
        asked, found = told(fresh), logits(fresh, stream(0, 14))
        for name, values in found.items():
            seen = torch.stack([value.argmax(1) for value in values], 1)
            right = ((seen == asked) | (asked == UNSAID)).all(1).double().mean()
            print(f"{right:.4f} of captions are read wholly right {name}")


def main(folder: Path) -> None:
    """Make, train and write them."""
    texts = sayings(20_000, stream(0, 12))
    made = tokenizer(sorted({word for text in texts for word in re.findall(r"[a-z]+|,", text)}))
    torch.manual_seed(0)
    net = CLIPTextModel(sizes(made, layers=2))

    def read_from(tokens: Tensor, end: Tensor, later: Tensor) -> dict[str, Tensor]:
        states, rows = net(tokens).last_hidden_state, torch.arange(len(tokens))
        return {"at the end": states[rows, end], "in the padding": states[rows, later]}

    learn(folder / "text", made, net, read_from)
    net.save_pretrained(folder / "text_encoder", safe_serialization=True)
    made.save_pretrained(folder / "tokenizer")


if __name__ == "__main__":
    main(command_folder())
