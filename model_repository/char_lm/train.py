"""Trains a small model that writes text, one character at a time, and writes 1/model.pt.

    pip install torch==2.11.0
    PYTHONHASHSEED=0 python train.py

With the hash seed the archive comes out the same to the byte (TorchScript writes a set of names in
its order).

alice.txt is from "Alice's Adventures in Wonderland" by Lewis Carroll, 1865, which is in the public
domain: most of chapters I, II and VII and a part of VI, without the poems. Each paragraph is a text
for itself, so the model learns where a text ends. Every tenth is held out: never trained on, but
dropout and the number of steps were chosen by it.
"""

import io
import zipfile
from pathlib import Path
from typing import List, Optional, Tuple

import torch
from torch import nn

HERE = Path(__file__).resolve().parent
SEED = 7
HIDDEN = 192
STEPS = 1800
BATCH = 32
WINDOW = 160
END = 0  # the symbol before and behind each text; the others are characters


class Reader(nn.Module):
    """What is trained: symbols in, the logits of the symbol after each out."""

    def __init__(self, symbols: int):
        super().__init__()
        self.symbols = symbols
        self.gru = nn.GRU(symbols, HIDDEN, batch_first=True)
        self.dropout = nn.Dropout(0.15)
        self.out = nn.Linear(HIDDEN, symbols)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        seen, _ = self.gru(nn.functional.one_hot(tokens, self.symbols).float())
        return self.out(self.dropout(seen))


class CharLm(nn.Module):
    """What is served: the same network, one symbol at a time, for many texts at once.

    No row changes what another gets. Each has a random number generator of its own, and it is
    calculated in FP64: in FP32 the last bits of a product depend on the size of the batch, and in a
    long text one of them would sooner or later choose another character.
    """

    PROMPT: torch.jit.Final[int] = 500

    def __init__(self, reader: Reader, characters: str):
        super().__init__()
        gru = reader.gru
        # A symbol is a one in zeros, so that its product with the weights is a row of this table.
        self.register_buffer("table", (gru.weight_ih_l0.T + gru.bias_ih_l0).detach().half().contiguous())
        self.register_buffer("weight", gru.weight_hh_l0.T.detach().half().contiguous())
        self.register_buffer("bias", gru.bias_hh_l0.detach().half())
        self.register_buffer("out_weight", reader.out.weight.T.detach().half().contiguous())
        self.register_buffer("out_bias", reader.out.bias.detach().half())
        self.symbols: List[str] = [""] + list(characters)
        # The symbol of each byte; one that the model never saw reads as a space.
        self.symbol_of: List[int] = [self.symbols.index(chr(b) if chr(b) in characters else " ") for b in range(256)]

    @torch.jit.export
    def start(
        self,
        prompt: List[str],
        temperature: Optional[torch.Tensor] = None,
        seed: Optional[torch.Tensor] = None,
    ) -> Tuple[List[str], torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Reads each row's prompt and writes the first character after it.

        Of a long prompt the end is read. Temperature 0 always takes the likeliest character.
        """
        rows = len(prompt)
        device = self.weight.device
        longest = 0
        for text in prompt:
            longest = max(longest, min(len(text), self.PROMPT))
        codes: List[int] = []
        for text in prompt:
            read = text[max(0, len(text) - self.PROMPT) :]
            codes.append(0)
            for at in range(len(read)):
                codes.append(self.symbol_of[ord(read[at])])
            for _ in range(longest - len(read)):
                codes.append(-1)
        tokens = torch.tensor(codes, dtype=torch.int64, device=device).view(rows, longest + 1)

        if temperature is None:
            temperature = torch.full([rows, 1], 0.6, dtype=torch.float32, device=device)
        rng = torch.zeros([rows, 1], dtype=torch.int64, device=device) if seed is None else seed
        hidden = torch.zeros([rows, self.weight.size(0)], dtype=torch.float64, device=device)
        for at in range(longest + 1):
            token = tokens[:, at : at + 1]
            hidden = torch.where(token >= 0, self.read(token.clamp(min=0), hidden), hidden)
            # With the same random numbers, texts after different prompts would soon become the same.
            rng = torch.where(token >= 0, (rng ^ token) * 1099511628211, rng)
        return self.write(hidden, rng, temperature, torch.zeros_like(tokens[:, :1], dtype=torch.bool))

    @torch.jit.export
    def step(
        self, token: torch.Tensor, hidden: torch.Tensor, rng: torch.Tensor, temp: torch.Tensor
    ) -> Tuple[List[str], torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Writes the character after `token`; after the end of a text nothing more."""
        hidden = self.read(token, hidden.double())
        return self.write(hidden, rng, temp, token == 0)

    def read(self, token: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """What a GRU makes of one more symbol in each row."""
        x_reset, x_update, x_new = self.table.double()[token[:, 0]].chunk(3, dim=1)
        h_reset, h_update, h_new = torch.addmm(self.bias.double(), hidden, self.weight.double()).chunk(3, dim=1)
        new = torch.tanh(x_new + torch.sigmoid(x_reset + h_reset) * h_new)
        return torch.lerp(new, hidden, torch.sigmoid(x_update + h_update))

    def write(
        self, hidden: torch.Tensor, rng: torch.Tensor, temp: torch.Tensor, ended: torch.Tensor
    ) -> Tuple[List[str], torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Chooses a symbol for each row."""
        logits = torch.addmm(self.out_bias.double(), hidden, self.out_weight.double())
        likeliest = logits.argmax(dim=1, keepdim=True)

        # SplitMix64: the state is counted up, and mixed it is a random number. Integers wrap.
        rng = rng + -7046029254386353131
        mixed = rng
        mixed = (mixed ^ ((mixed >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
        mixed = (mixed ^ ((mixed >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
        mixed = mixed ^ ((mixed >> 31) & 0x1FFFFFFFF)
        chance = ((mixed >> 11) & 0x1FFFFFFFFFFFFF).double() * 2.0**-53

        # As many symbols as lie below the chance, each as wide as it is likely.
        sharp = (logits - logits.amax(dim=1, keepdim=True)) / torch.where(temp > 0, temp, 1.0).double()
        bounds = torch.cumsum(torch.exp(sharp), dim=1)
        drawn = (bounds <= chance * bounds[:, -1:]).sum(dim=1, keepdim=True)
        drawn = drawn.clamp(max=logits.size(1) - 1)

        token = torch.where(temp > 0, drawn, likeliest)
        token = torch.where(ended, torch.zeros_like(token), token)
        chosen: List[int] = token.flatten().tolist()
        text: List[str] = []
        for symbol in chosen:
            text.append(self.symbols[symbol])
        return text, token, token == 0, hidden.float(), rng, temp


def train(reader: Reader, stream: torch.Tensor, held_out: torch.Tensor) -> None:
    optimizer = torch.optim.AdamW(reader.parameters(), lr=8e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=8e-3, total_steps=STEPS, pct_start=0.15)
    recurrent = "gru.weight_hh_l0"
    for step in range(1, STEPS + 1):
        starts = torch.randint(0, len(stream) - WINDOW, (BATCH, 1))
        window = stream[starts + torch.arange(WINDOW + 1)]
        # So little text is soon known by heart. Without some of the weights, others in each step, it is not.
        dropped = {recurrent: nn.functional.dropout(reader.gru.weight_hh_l0, 0.4)}
        logits = torch.func.functional_call(reader, dropped, window[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}, held out {measure(reader, held_out):.3f}", flush=True)


def measure(reader: Reader, stream: torch.Tensor) -> float:
    """Nats per character."""
    reader.eval()
    with torch.no_grad():
        loss = nn.functional.cross_entropy(reader(stream[None, :-1])[0], stream[1:]).item()
    reader.train()
    return loss


def write_texts(module, prompts: List[str], temperature: float, seeds: List[int], most: int = 400) -> List[str]:
    """What a server does with the model: `start`, then `step` with what the one before returned."""
    count = len(prompts)
    temperatures = torch.full((count, 1), temperature)
    text, token, done, *states = module.start(prompts, temperatures, torch.tensor(seeds).view(count, 1))
    written = list(text)
    for _ in range(most - 1):
        if done.all():
            break
        text, token, done, *states = module.step(token, *states)
        written = [one + more for one, more in zip(written, text)]
    return written


def check_rows(module, paragraphs: List[str]) -> None:
    """A row of a batch must get what it gets alone."""
    prompts = [paragraphs[i % len(paragraphs)][: 7 * i % 60] for i in range(200)]
    alone = [write_texts(module, [prompt], 0.9, [seed], 200)[0] for seed, prompt in enumerate(prompts)]
    for size in (3, 32):
        together: List[str] = []
        for at in range(0, len(prompts), size):
            rows = prompts[at : at + size]
            together += write_texts(module, rows, 0.9, list(range(at, at + len(rows))), 200)
        assert together == alone, f"batches of {size} get other texts than single requests"


def save(module: torch.jit.ScriptModule, path: Path) -> None:
    """Saves without the debug records: they name the source files of the machine that trained."""
    whole, stripped = io.BytesIO(), io.BytesIO()
    torch.jit.save(module, whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(stripped, "w") as new:
        for name in old.namelist():
            if not name.endswith(".debug_pkl"):
                new.writestr(name, old.read(name))
    stripped.seek(0)
    path.parent.mkdir(exist_ok=True)
    torch.jit.save(torch.jit.load(stripped), str(path))


def main() -> None:
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)

    paragraphs = (HERE / "alice.txt").read_text(encoding="ascii").split("\n\n")
    paragraphs = [paragraph.strip() for paragraph in paragraphs]
    characters = "".join(sorted(set("".join(paragraphs))))

    def stream(texts: List[str]) -> torch.Tensor:
        symbols = [END]
        for text in texts:
            symbols += [1 + characters.index(character) for character in text] + [END]
        return torch.tensor(symbols)

    held_out = stream(paragraphs[9::10])
    reader = Reader(1 + len(characters))
    train(reader, stream([text for at, text in enumerate(paragraphs) if at % 10 != 9]), held_out)
    loss = measure(reader, held_out)
    save(torch.jit.script(CharLm(reader, characters).eval()), HERE / "1" / "model.pt")
    print(f"held out: {loss:.3f} nats per character")
    assert loss < 1.5

    with torch.no_grad():
        served = torch.jit.freeze(torch.jit.load(str(HERE / "1" / "model.pt")).eval(), ["start", "step"])
        check_rows(served, paragraphs)
        for seed, prompt in enumerate(["Alice ", "'I don't", "The Hatter"]):
            print(repr(prompt + write_texts(served, [prompt], 0.6, [seed])[0]))


if __name__ == "__main__":
    main()
