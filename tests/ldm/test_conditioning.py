"""Conditions: tokenizer, null conditions and their dropout, classes, text encoders, folders."""

import json
import random

import pytest
import torch
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel

from ldm.conditioning import words
from ldm.conditioning.condition import Condition
from ldm.conditioning.conditioner import Conditioner, class_index
from ldm.conditioning.config import ConditioningConfig
from ldm.conditioning.tokenizer import BASE_SIZE, END, START, train_tokenizer
from ldm.conditioning.words import TrainingWords
from ldm.runtime.errors import UserError

COLOURS, SHAPES = ("red", "green", "blue", "yellow"), ("circle", "square", "triangle", "star")
CAPTIONS = [f"a {size} {colour} {shape}" for size in ("large", "Small") for colour in COLOURS for shape in SHAPES]
SMALL = {"text_width": 16, "text_layers": 1, "text_heads": 2, "vocab_size": BASE_SIZE + 60}
SHORT = SMALL | {"least_tokens": 2}  # texts as long as the longest caption
NASTY = [
    "",
    "  \n ",
    "\x00\x1b[31m",
    "\ud800 half",
    "né 猫 \U0001f600",
    END + " " + START,
    "../../etc/passwd",
    "x" * 5000,
]


@pytest.fixture(scope="module")
def text_model():
    return Conditioner.build(ConditioningConfig(**SHORT), SHAPES, CAPTIONS)


@pytest.fixture(scope="module")
def class_model():
    return Conditioner.build(ConditioningConfig(condition_dropout=0.2), SHAPES)


def test_the_tokenizer_is_deterministic_and_clips(tmp_path):
    first, second = (train_tokenizer(list(CAPTIONS), BASE_SIZE + 60) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()
    shuffled = random.Random(0).sample(CAPTIONS, len(CAPTIONS))
    assert train_tokenizer(shuffled, BASE_SIZE + 60).get_vocab() == first.get_vocab()
    assert len(first) <= BASE_SIZE + 60
    ids = first("A large RED circle").input_ids
    assert first.convert_ids_to_tokens(ids) == [START, "a</w>", "large</w>", "red</w>", "circle</w>", END]
    assert sorted(first.get_vocab().values()) == list(range(len(first)))

    first.save_pretrained(tmp_path)
    for again in (CLIPTokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert isinstance(again, CLIPTokenizer)
        assert again(CAPTIONS).input_ids == first(CAPTIONS).input_ids
        assert (again.pad_token, again.eos_token, again.bos_token) == (END, END, START)
    with pytest.raises(UserError, match="vocab_size: expected at least 514"):
        train_tokenizer(CAPTIONS, 100)


@pytest.mark.parametrize(
    ("settings", "length"),
    [({}, 32), ({"least_tokens": 2}, 6), ({"max_tokens": 4}, 4), ({"least_tokens": 77}, 77)],
)
def test_prompts_may_be_longer_than_the_captions(settings, length):
    """The captions have six tokens with their marks."""
    built = Conditioner.build(ConditioningConfig(**SMALL, **settings), SHAPES, CAPTIONS)
    assert built.text.max_tokens == length == built.tokenize(["a"]).shape[1]
    assert built.text.count_cut(CAPTIONS, built.tokenize(CAPTIONS)) == (len(CAPTIONS) if length == 4 else 0)


def test_words_that_are_cut_are_known(text_model):
    long = " ".join(["red"] * 4)
    assert text_model.text.cut_words(long) == () and text_model.text.cut_words("") == ()
    assert text_model.text.cut_words(long + " blue star") == ("blue", "star")
    texts = [long, long + " blue", "red"]
    assert text_model.text.count_cut(texts, text_model.tokenize(texts)) == 1


def test_the_words_of_the_captions_are_kept_within_bounds(text_model, tmp_path, monkeypatch):
    assert text_model.words.unknown("A LARGE purple Star, by Monet; purple!") == ("purple", "by", "monet")
    assert TrainingWords.of(["\u732b\u3068 cat"]).unknown("\u732b\u72ac") == ("\u72ac",)  # no spaces between words
    text_model.save_pretrained(tmp_path)
    assert Conditioner.from_pretrained(tmp_path).words == text_model.words
    stored = json.loads((tmp_path / "conditioning.json").read_text())
    for other in ({}, {"training_words": None}):  # a folder without them
        del stored["training_words"]
        (tmp_path / "conditioning.json").write_text(json.dumps(stored | other))
        assert Conditioner.from_pretrained(tmp_path).words is None
        stored["training_words"] = {}
    monkeypatch.setattr(words, "MAX_WORDS", 3)
    few = TrainingWords.of(["a b c d", "d b c", "x" * 100])
    assert few == TrainingWords(frozenset("bcd"), 2)


def test_tokens_are_padded_with_the_end_mark(text_model):
    tokens = text_model.tokenize(["a red circle", "", "a " * 100])
    length = text_model.text.max_tokens
    assert tokens.dtype == torch.int64 and tokens.shape == (3, length) == (
        3,
        4 + 2,
    )  # the longest caption and its marks
    start, end = text_model.text.tokenizer.bos_token_id, text_model.text.tokenizer.eos_token_id
    assert tokens[1].tolist() == [start] + [end] * (length - 1)
    assert tokens[0, 4:].tolist() == [end] * 2 and (tokens[2, 1:-1] == tokens[2, 1]).all() and tokens[2, -1] == end
    assert text_model.text.fits("a large red circle") and not text_model.text.fits("a large red circle there")


def test_untrusted_text_is_just_data(text_model):
    tokens = text_model.tokenize(NASTY)
    assert tokens.shape == (len(NASTY), text_model.text.max_tokens)
    assert tokens.min() >= 0 and tokens.max() < text_model.text.model.config.vocab_size
    assert text_model.encode(None, NASTY).context.isfinite().all()
    built = Conditioner.build(ConditioningConfig(**SMALL), ["\x1b[31mred", "b"], NASTY)
    assert built.tokenize(["a"]).shape == (1, built.text.max_tokens)


def test_building_is_reproducible_and_leaves_global_random_state(text_model):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    again = Conditioner.build(ConditioningConfig(**SHORT), SHAPES, CAPTIONS)
    assert torch.equal(torch.rand(3), expected)
    for (name, a), (_, b) in zip(text_model.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_dropping_is_by_sample():
    both = Conditioner.build(ConditioningConfig(class_conditional=True, **SMALL), SHAPES, CAPTIONS)
    labels, tokens = torch.arange(1000) % 4, both.tokenize(CAPTIONS)[torch.arange(1000) % len(CAPTIONS)]
    dropped = torch.rand(1000, generator=torch.Generator().manual_seed(0)) < both.dropout
    new_labels, new_tokens = both.drop(labels, tokens, dropped)
    null = both.tokenize([""])[0]
    assert both.null_class == 4 and both.num_class_embeds == 5
    assert torch.equal(new_labels == 4, dropped) and 70 < dropped.sum() < 130
    assert torch.equal((new_tokens == null).all(1), dropped)
    assert torch.equal(new_labels[~dropped], labels[~dropped]) and torch.equal(new_tokens[~dropped], tokens[~dropped])
    unlabelled, _ = both.drop(torch.tensor([-1, 2]), None, torch.tensor([False, False]))
    assert unlabelled.tolist() == [4, 2]

    condition = both(new_labels, new_tokens)
    expected = both.null(1)
    which = int(dropped.nonzero()[0])
    assert condition.class_labels[which] == expected.class_labels[0]
    torch.testing.assert_close(condition.context[which], expected.context[0])


def test_what_is_conditioned_on_follows_the_data(text_model, class_model):
    neither = Conditioner.build(ConditioningConfig())
    assert (text_model.context_dim, text_model.num_classes, text_model.null_class) == (16, 0, None)
    assert (class_model.context_dim, class_model.num_classes, class_model.num_class_embeds) == (None, 4, 5)
    assert (neither.context_dim, neither.num_class_embeds) == (None, None)
    assert neither.null(3) == Condition(None, None)
    assert class_model.null(3).class_labels.tolist() == [4, 4, 4] and class_model.null(3).context is None
    assert text_model.class_index("star") == 3  # known, although no condition: a classifier may guide to it
    with pytest.raises(UserError, match="data has none"):
        Conditioner.build(ConditioningConfig(text_encoder="embedded"), SHAPES, [" "])
    with pytest.raises(UserError, match="expected data with class labels"):
        Conditioner.build(ConditioningConfig(class_conditional=True))
    with pytest.raises(UserError, match="condition_dropout: expected"):
        ConditioningConfig(condition_dropout=1.5)


def test_encoding_requests(text_model, class_model):
    assert class_model.encode(["star", 1, "0", None], None).class_labels.tolist() == [3, 1, 0, 4]
    texts = ["a red star", "", "a red star"]
    context = text_model.encode(None, texts).context
    tokens = text_model.tokenize(texts)
    torch.testing.assert_close(context, text_model(None, tokens).context)
    torch.testing.assert_close(context[1:2], text_model.null(1).context)
    assert torch.equal(context[0], context[2])
    with pytest.raises(UserError, match="not conditioned on text"):
        class_model.encode([1], ["a red star"])
    with pytest.raises(UserError, match="not conditioned on classes"):
        text_model.encode([1], ["a red star"])
    with pytest.raises(UserError, match="as many labels as texts"):
        text_model.encode([None], ["a", "b"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("stra", 'known: circle, square, star, triangle; did you mean "star"'),
        ("7", "unknown class 7: expected 0 to 3"),
        (-1, "unknown class -1"),
        ("\x1b[31m", "unknown class '\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_unknown_classes_are_named(name, message):
    with pytest.raises(UserError) as caught:
        class_index(name, SHAPES)
    assert message in str(caught.value) and "\x1b" not in str(caught.value)


def test_gradient_reaches_an_embedded_encoder(text_model):
    text_model.train()
    condition = text_model(None, text_model.tokenize(["a red star"]))
    condition.context.square().sum().backward()
    gradients = [parameter.grad for parameter in text_model.parameters()]
    assert all(gradient is not None for gradient in gradients) and max(g.abs().max() for g in gradients) > 0
    text_model.zero_grad()


def test_conditions_join_repeat_and_select():
    one = Condition(torch.tensor([1, 2]), torch.arange(4.0).view(2, 1, 2))
    twice = one.repeat(2)
    assert twice.class_labels.tolist() == [1, 2, 1, 2] and twice.context.shape == (4, 1, 2)
    assert twice.select(torch.tensor([3])).class_labels.tolist() == [2]
    assert Condition.cat([Condition(None, None)] * 2) == Condition(None, None)
    with pytest.raises(ValueError, match="in all conditions or in none, got 1 of 2"):
        Condition.cat([one, Condition(None, one.context)])


@pytest.mark.parametrize("kind", ["text_model", "class_model"])
def test_saving_and_loading(kind, request, tmp_path):
    conditioner = request.getfixturevalue(kind)
    metadata = conditioner.save_pretrained(tmp_path)
    assert metadata == json.loads((tmp_path / "conditioning.json").read_text())
    again = Conditioner.from_pretrained(tmp_path)
    assert again.metadata() == metadata and again.class_names == SHAPES and not again.training
    labels, texts = ([1, None], None) if kind == "class_model" else (None, ["a red star", ""])
    ours, theirs = conditioner.eval().encode(labels, texts), again.encode(labels, texts)
    for name in ("class_labels", "context"):
        a, b = getattr(ours, name), getattr(theirs, name)
        assert (a is None and b is None) or torch.equal(a, b)
    for broken in ({"class_names": "abc"}, {**metadata, "text": {"encoder": "pickle", "max_tokens": 8}}):
        (tmp_path / "conditioning.json").write_text(json.dumps(broken))
        with pytest.raises(UserError, match=r"conditioning\.json"):
            Conditioner.from_pretrained(tmp_path)


def test_a_folder_of_somebody_else(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps({"num_class_embeds": 11}))
    classes = Conditioner.from_pretrained(tmp_path)
    assert (classes.num_classes, classes.null_class, classes.class_index("9"), classes.has_text) == (10, 10, 9, False)
    tiny_clip(tmp_path / "text_encoder")
    CLIPTokenizer.from_pretrained(tmp_path / "text_encoder").save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "unet" / "config.json").write_text("{}")
    text = Conditioner.from_pretrained(tmp_path)
    assert (text.num_class_embeds, text.context_dim, text.tokenize(["a"]).shape) == (None, 16, (1, 20))


def tiny_clip(folder):
    tokenizer = train_tokenizer(CAPTIONS, BASE_SIZE + 60)
    tokenizer.model_max_length = 20
    tokenizer.save_pretrained(folder)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=20,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    CLIPTextModel(config).save_pretrained(folder)


def tiny_t5(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for caption in CAPTIONS for word in caption.lower().split()})
    vocabulary = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    config = T5Config(vocab_size=len(vocabulary), d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(folder)


@pytest.mark.parametrize(
    ("make", "name", "width", "length"),
    [(tiny_clip, "CLIPTextModel", 16, 6), (tiny_t5, "T5EncoderModel", 24, 5)],
)
def test_a_frozen_encoder_of_a_folder(make, name, width, length, tmp_path):
    make(tmp_path / "source")
    config = ConditioningConfig(text_encoder=str(tmp_path / "source"), least_tokens=2)
    conditioner = Conditioner.build(config, SHAPES, CAPTIONS).train()
    assert conditioner.context_dim == width
    assert conditioner.tokenize(["a red star"]).shape == (1, length)
    assert not any(parameter.requires_grad for parameter in conditioner.parameters())
    assert not any(module.training for module in conditioner.text.modules())
    context = conditioner.encode(None, ["a red star", ""]).context
    assert not context.requires_grad and (context[0] - context[1]).abs().max() > 1e-3

    assert conditioner.index_entries()["text_encoder"] == ["transformers", name]
    conditioner.save_pretrained(tmp_path / "model")
    again = Conditioner.from_pretrained(tmp_path / "model")
    assert again.metadata() == conditioner.metadata() and again.metadata()["text"]["source"] == "source"
    torch.testing.assert_close(again.encode(None, ["a red star", ""]).context, context)
    parts = Conditioner.build(ConditioningConfig(text_encoder=str(tmp_path / "model")), (), CAPTIONS)
    torch.testing.assert_close(parts.encode(None, ["a red star", ""]).context, context)


def test_refused_text_encoders(tmp_path):
    def build(where, **settings):
        return Conditioner.build(ConditioningConfig(text_encoder=str(where), **settings), (), CAPTIONS)

    with pytest.raises(UserError, match="no such folder"):
        build(tmp_path / "absent")
    tiny_clip(tmp_path / "clip")
    with pytest.raises(UserError, match="takes at most 20, got 40"):
        build(tmp_path / "clip", max_tokens=40)
    config = tmp_path / "clip" / "config.json"
    keys = json.loads(config.read_text())
    config.write_text(json.dumps({**keys, "model_type": "gpt2"}))
    with pytest.raises(UserError, match="expected a CLIP or T5 model, found model_type 'gpt2'"):
        build(tmp_path / "clip")
    config.write_text(json.dumps(keys))
    torch.save({}, tmp_path / "clip" / "pytorch_model.bin")
    (tmp_path / "clip" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="safetensors only"):
        build(tmp_path / "clip")
