"""Tiny models of every family, calibrated without any download, and the real default model, loaded once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tiny_models import FAMILIES, VOCABULARY, ModelFactory, llama_gqa, llama_mha, phi, phi3
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, WhitespaceSplit
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from intraslice.calibration.driver import CalibrationStats, calibrate
from intraslice.core.errors import UserError
from intraslice.loading import LoadedModel, fingerprint, load_model
from intraslice.modeling.families import canonicalise

# Together: grouped and single key/value heads, all biases and none, heads rotated whole, in part and not at all,
# attention and MLP after and beside each other.
TELLING = ("llama-biased", "phi", "smollm3")


def _word_tokenizer(words: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@dataclass(frozen=True)
class TinyCase:
    """One family's tiny model, calibrated. Shared by the session: do not change it."""

    name: str
    original: PreTrainedModel  # transformers' own class, untouched
    loaded: LoadedModel
    tokens: torch.Tensor  # (16, 48)
    stats: CalibrationStats


def _loaded(model: PreTrainedModel, name: str = "tiny") -> LoadedModel:
    digest = fingerprint(model)
    canonicalise(model)
    return LoadedModel(
        model, _word_tokenizer([f"w{index}" for index in range(4, VOCABULARY)]), name, "random weights", digest
    )


@pytest.fixture(scope="session")
def as_loaded() -> Callable[[PreTrainedModel], LoadedModel]:
    """Makes a canonical LoadedModel of a tiny transformers model, in place; token n is the word `wn`."""
    return _loaded


@pytest.fixture(scope="session")
def tiny_case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyCase]:
    """Makes the calibrated case of one of `FAMILIES`, once a session."""
    made: dict[str, TinyCase] = {}

    def make(name: str) -> TinyCase:
        if name not in made:
            loaded = _loaded(FAMILIES[name](), name)
            tokens = torch.randint(3, VOCABULARY, (16, 48), generator=torch.Generator().manual_seed(7))
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("INTRASLICE_CACHE", str(tmp_path_factory.mktemp("calibrations")))
                stats = calibrate(loaded, tokens, progress=False)
            made[name] = TinyCase(name, FAMILIES[name](), loaded, tokens, stats)
        return made[name]

    return make


@pytest.fixture(
    scope="session",
    params=[name if name in TELLING else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)
def family_case(request: pytest.FixtureRequest, tiny_case: Callable[[str], TinyCase]) -> TinyCase:
    """The telling families in turn; the others only with `-m slow`."""
    return tiny_case(request.param)


@pytest.fixture
def cross_module_case(family_case: TinyCase) -> TinyCase:
    """The case of each family whose residual stream may change its basis."""
    if family_case.name == "gemma3":
        pytest.skip("refused: norms after its modules; test_crossmodule.py has the refusal")
    return family_case


@pytest.fixture(scope="session", params=FAMILIES)
def every_family_case(request: pytest.FixtureRequest, tiny_case: Callable[[str], TinyCase]) -> TinyCase:
    """All families in turn."""
    return tiny_case(request.param)


@pytest.fixture(scope="session")
def tiny_llama_mha() -> ModelFactory:
    """7 heads of dim 8, hidden size 56, untied."""
    return llama_mha


@pytest.fixture(scope="session")
def tiny_llama_gqa() -> ModelFactory:
    """9 query heads on 3 key/value heads of dim 8, hidden size 54, tied embeddings."""
    return llama_gqa


@pytest.fixture(scope="session")
def tiny_phi3() -> ModelFactory:
    """6 query heads on 2 key/value heads of dim 8, fused projections."""
    return phi3


@pytest.fixture(scope="session")
def tiny_phi() -> ModelFactory:
    """3 heads of dim 16, 8 channels rotated, parallel attention and MLP with biases."""
    return phi


@pytest.fixture(scope="session")
def word_tokenizer() -> Callable[[Sequence[str]], PreTrainedTokenizerFast]:
    """Makes a tokenizer of the given words: one token a word, ids in their order after <pad>, <s>, </s>, <unk>."""
    return _word_tokenizer


@pytest.fixture(scope="session")
def all_bytes_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte, as many as the tiny models have: it encodes any text."""
    tokenizer = Tokenizer(BPE({letter: index for index, letter in enumerate(sorted(ByteLevel.alphabet()))}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="session")
def default_model() -> LoadedModel:
    """SmolLM2-135M-Instruct, shared by the session: do not change it."""
    return load_model("default")


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """What draws from torch's own generator draws the same, whatever ran before."""
    torch.manual_seed(0)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that is not there yet, for this test alone."""
    monkeypatch.setenv("INTRASLICE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path, tiny_llama_gqa: ModelFactory, word_tokenizer: Callable) -> Path:
    """A tiny Llama and its tokenizer in transformers format."""
    tiny_llama_gqa().save_pretrained(tmp_path / "tiny")
    word_tokenizer().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def refusal() -> Callable[..., str]:
    """Loads what cannot be loaded and returns the one line that says why."""

    def load(name: str | Path, **options: object) -> str:
        with pytest.raises(UserError) as caught:
            load_model(str(name), **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return load
