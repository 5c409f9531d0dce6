import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from exported_folders import answers_of_folder_alone
from huggingface_hub import ModelCard
from PIL import Image
from untrained_runs import cifar_run, cvae_run, translation_run, unet_run

import tools.pretrained.cifar
import tools.pretrained.cvae
import tools.pretrained.translation
import tools.pretrained.unet
from data.images.textured_shapes import textured_shapes
from data.text.tokenization import BOS_ID, EOS_ID
from models.decoding import length_bound
from tools.classify import Classifier
from tools.export import DiffersFromOriginal, export, main
from tools.exporting import hub_folder, packages, safetensors_folder
from tools.exporting.comparison import largest_difference
from tools.exporting.trained_model import TrainedModel, open_trained_model
from tools.sample import Sampler
from tools.segment import Segmenter
from tools.translate import Translator

LSTM = {"model": "lstm", "tied_embeddings": "none", "embedding_dim": 16, "hidden_size": 24}
SENTENCES = ["Luca reads a book.", "", "Where is the station?"]
SUMMARIES = {
    "translation": {"test/bleu": 31.4159265, "test/chrf": 50.0, "train_seconds": 90.0, "device": "CPU (2 threads)"},
    "lstm": {},
    "cifar": {"test/accuracy": 0.91},
    "unet": {"test/dice": 0.87, "test/iou": 0.77},
    "cvae": {"test/elbo": -90.5, "test/bits_per_dim": 0.17},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A run of each script, and one with an LSTM."""
    folder = tmp_path_factory.mktemp("runs")
    made = {
        "translation": translation_run(folder / "translation"),
        "lstm": translation_run(folder / "lstm", **LSTM),
        "cifar": cifar_run(folder / "cifar", speednet_widths=(8, 8, 8), views="mirror"),
        "unet": unet_run(folder / "unet", depth=1),
        "cvae": cvae_run(folder / "cvae"),
    }
    for name, run in made.items():
        (run / "figures").mkdir()
        for figure in ("bleu", "best_and_worst", "confusion_matrix", "prior_samples", "lr"):
            Image.new("RGB", (8, 8)).save(run / "figures" / f"{figure}.png")
        (run / "summary.json").write_text(json.dumps(SUMMARIES[name]))
    return made


@pytest.fixture(scope="module")
def trained(runs) -> dict[str, TrainedModel]:
    return {name: open_trained_model(run) for name, run in runs.items()}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    """Files of sizes that no run was trained on."""
    folder = tmp_path_factory.mktemp("pictures")
    _, test = textured_shapes(1, 2)
    for image, size in zip(test.images, ((40, 40), (90, 70)), strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size).save(folder / f"{size[0]}.png")
    return sorted(folder.iterdir())


def refused(capsys, *arguments, **flags) -> str:
    """What `main` says on stderr, in one line, before it ends with exit code 2."""
    with pytest.raises(SystemExit) as end:
        main(*map(str, arguments), **flags)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


# --- safetensors, and the classes that open them


def test_what_a_folder_opens_to_answers_as_the_tools_do(runs, trained, pictures, tmp_path):
    for name, model in trained.items():
        (difference,) = export(model, "safetensors", tmp_path / name)
        assert difference.largest <= 1e-5, name
    for name in ("translation", "lstm"):
        translator = tools.pretrained.translation.from_pretrained(tmp_path / name)
        assert translator(SENTENCES) == Translator(runs[name])(SENTENCES)
    classifier = tools.pretrained.cifar.from_pretrained(tmp_path / "cifar")
    expected = list(Classifier(runs["cifar"])(pictures, views="mirror", top_k=3))
    for found, classes in zip(classifier(pictures), expected, strict=True):
        assert list(found) == [name for name, _ in classes]
        assert list(found.values()) == pytest.approx([share for _, share in classes], abs=1e-5)
    segmenter = tools.pretrained.unet.from_pretrained(tmp_path / "unet")
    expected = [mask for _, mask in Segmenter(runs["unet"])(pictures, "scales")]
    assert all(torch.equal(a, b) for a, b in zip(segmenter(pictures), expected, strict=True))
    sampler = tools.pretrained.cvae.from_pretrained(tmp_path / "cvae")
    drawn = sampler("7", 3, seed=2, temperature=0.8)
    torch.testing.assert_close(drawn, Sampler(runs["cvae"])("7", 3, seed=2, temperature=0.8), atol=1e-5, rtol=0)
    assert sampler.model.state_dict().keys() < Sampler(runs["cvae"]).model.state_dict().keys()  # no classifier


def test_a_difference_beyond_the_limit_leaves_nothing_and_exit_code_1(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(safetensors_folder, "LIMIT", -1.0)
    with pytest.raises(SystemExit) as end:
        main(str(runs["cvae"]), str(tmp_path / "exported"), to="safetensors")
    assert end.value.code == 1
    assert "differs from the original" in capsys.readouterr().err and not any(tmp_path.iterdir())


def test_other_weights_are_seen(trained, tmp_path, monkeypatch):
    write = safetensors_folder.write

    def write_wrongly(model: TrainedModel, folder: Path) -> None:
        write(model, folder)
        description = {**model.description, "mean": [0.0, 0.0, 0.0]}
        (folder / "config.json").write_text(json.dumps(description))

    monkeypatch.setattr(safetensors_folder, "write", write_wrongly)
    with pytest.raises(DiffersFromOriginal):
        export(trained["unet"], "safetensors", tmp_path / "exported")


def test_no_number_is_no_small_difference():
    expected = torch.tensor([1.0, -torch.inf])
    assert largest_difference("x", expected, expected.clone(), 0.0).is_small
    assert not largest_difference("x", expected, torch.tensor([torch.nan, -torch.inf]), 10.0).is_small
    assert not largest_difference("x", expected, torch.tensor([1.0, 0.0]), 10.0).is_small


def test_wrong_usage_is_one_line_and_exit_code_2(runs, tmp_path, monkeypatch, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "is there already" in refused(capsys, runs["unet"], tmp_path / "full", to="safetensors")
    assert "no checkpoint there" in refused(capsys, tmp_path, tmp_path / "x", to="safetensors")
    flags = {"to": "hub", "quantization": "int8"}
    assert "is of --to ctranslate2" in refused(capsys, runs["unet"], tmp_path / "x", **flags)
    flags = {"to": "safetensors", "push_to_hub": "me/model"}
    assert "are of --to hub" in refused(capsys, runs["unet"], tmp_path / "x", **flags)
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    line = refused(capsys, runs["unet"], tmp_path / "x", to="onnx")
    assert "pip install onnx onnxscript onnxruntime" in line
    assert not (tmp_path / "x").exists()


# --- hub


def test_a_folder_alone_is_enough(runs, trained, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_folder, "differences", lambda trained, folder: [])  # tried in the next test
    paths = [str(path) for path in pictures]
    calls = {"translation": (SENTENCES,), "cifar": (paths,), "unet": (paths,), "cvae": ("7", 2)}
    answers = {}
    for script, call in calls.items():
        export(trained[script], "hub", tmp_path / script)
        answers[script] = answers_of_folder_alone(tmp_path / script, f"onecycle_{script}", *call)
    assert answers["translation"] == Translator(runs["translation"])(SENTENCES)
    classifier = tools.pretrained.cifar.from_pretrained(tmp_path / "cifar")
    for found, expected in zip(answers["cifar"], classifier(pictures), strict=True):
        assert found == pytest.approx(expected, abs=1e-5)
    segmenter = tools.pretrained.unet.from_pretrained(tmp_path / "unet")
    assert answers["unet"] == pytest.approx([float(mask.float().mean()) for mask in segmenter(pictures)], abs=1e-3)
    drawn = Sampler(runs["cvae"])("7", 2)
    assert answers["cvae"] == pytest.approx(drawn.mean((1, 2, 3)).tolist(), abs=1e-5)


def test_the_card_holds_metrics_samples_and_figures(runs, trained, tmp_path):
    """And the check in a Python of its own, which sees the folder and nothing of the project."""
    (difference,) = export(trained["translation"], "hub", tmp_path / "exported")
    assert difference.largest <= 1e-5
    card = ModelCard.load(tmp_path / "exported" / "README.md")
    data = card.data.to_dict()
    assert (data["pipeline_tag"], data["language"]) == ("translation", ["en", "it"])
    (entry,) = data["model-index"]
    metrics = {metric["type"]: metric["value"] for metric in entry["results"][0]["metrics"]}
    assert metrics == {"sacrebleu": 31.41593, "chrf": 50.0}
    source = (runs["translation"] / "translations" / "test.src.txt").read_text().splitlines()[0]
    for shown in (
        source,
        "figures/bleu.png",
        "| BLEU | 31.42 |",
        "1.5 minutes of training",
        "onecycle_translation",
    ):
        assert shown in card.text
    assert sorted(path.name for path in (tmp_path / "exported").iterdir()) == [
        "README.md",
        "config.json",
        "figures",
        "model.safetensors",
        "onecycle_translation",
        "source_tokenizer.json",
        "target_tokenizer.json",
    ]
    assert [path.name for path in (tmp_path / "exported" / "figures").iterdir()] == ["bleu.png"]
    assert str(tmp_path) not in card.content


def test_it_is_pushed_by_who_is_logged_in(runs, tmp_path, monkeypatch, capsys):
    uploaded = []

    class Api:
        def create_repo(self, name, private, exist_ok):
            uploaded.append((name, private))

        def upload_folder(self, repo_id, folder_path, commit_message):
            uploaded.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir())[:2]))
            return "https://hub/me/digits"

    monkeypatch.setattr(hub_folder, "differences", lambda trained, folder: [])
    monkeypatch.setattr(hub_folder.huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(hub_folder.huggingface_hub, "get_token", lambda: None)
    flags = {"to": "hub", "push_to_hub": "me/digits", "private": True}
    assert "wants a login" in refused(capsys, runs["cvae"], tmp_path / "exported", **flags)
    assert not uploaded and not (tmp_path / "exported").exists()
    monkeypatch.setattr(hub_folder.huggingface_hub, "get_token", lambda: "hf_token")
    main(str(runs["cvae"]), str(tmp_path / "exported"), **flags)
    assert uploaded == [("me/digits", True), ("me/digits", ["README.md", "config.json"])]
    assert "https://hub/me/digits" in capsys.readouterr().out


# --- onnx


@pytest.mark.slow
def test_image_nets_as_graphs(trained, tmp_path):
    """Bytes in, of sizes that were not traced; names of classes in the metadata."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    for name in ("cifar", "unet", "cvae"):
        found = export(trained[name], "onnx", tmp_path / name)
        assert len(found) == 2 and all(difference.largest < 1e-4 for difference in found)
    session = onnxruntime.InferenceSession(tmp_path / "unet" / "model.onnx")
    for size in ((70, 33), (9, 64), (5, 8)):
        images = torch.randint(0, 256, (3, 3, *size), dtype=torch.uint8)
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        torch.testing.assert_close(
            torch.from_numpy(logits), trained["unet"].pretrained.outputs(images), atol=1e-4, rtol=0
        )
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == ["background", "pet"] and metadata["script"] == "unet"
    assert json.loads((tmp_path / "unet" / "config.json").read_text()) == trained["unet"].description


@pytest.mark.slow
def test_a_transformer_as_two_graphs_translates_step_by_step(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    settings = {"pre_norm": False, "tied_embeddings": "none", "positions": "learned", "n_encoder_layers": 1}
    run = translation_run(tmp_path / "run", **settings, n_decoder_layers=2)
    (difference,) = export(open_trained_model(run), "onnx", tmp_path / "exported")
    assert difference.largest < 1e-4
    encoder, step = (
        onnxruntime.InferenceSession(tmp_path / "exported" / f"{n}.onnx") for n in ("encoder", "decoder_step")
    )
    translator = Translator(run)
    tokens = [*translator.source_tokenizer.encode([SENTENCES[0]])[0], EOS_ID]
    source = np.array([tokens])
    (memory,) = encoder.run(None, {"source": source})
    past = np.zeros((*memory.shape[:4], 0, memory.shape[5]), dtype=np.float32)
    words = [BOS_ID]
    while len(words) <= length_bound(len(tokens)) and words[-1] != EOS_ID:
        inputs = {"tokens": np.array(words[-1:]), "source": source, "memory": memory, "past": past}
        log_probs, past = step.run(None, inputs)
        words.append(int(log_probs[0].argmax()))
    assert translator.target_tokenizer.decode([words]) == translator(SENTENCES[:1], beam_size=1)


def test_an_lstm_says_what_it_can_be_exported_to(runs, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    line = refused(capsys, runs["lstm"], tmp_path / "exported", to="onnx")
    assert "--to safetensors or hub" in line and not any(tmp_path.iterdir())


# --- ctranslate2


@pytest.mark.parametrize("pre_norm", [True, False])
@pytest.mark.parametrize(
    ("tied", "positions"), [("none", "learned"), ("output", "sinusoidal"), ("three-way", "learned")]
)
def test_ctranslate2_computes_what_the_transformer_does(tmp_path, pre_norm, tied, positions):
    pytest.importorskip("ctranslate2")
    from tools.exporting.ctranslate2_model import CTranslate2Translator

    run = translation_run(tmp_path / "run", pre_norm=pre_norm, tied_embeddings=tied, positions=positions)
    trained = open_trained_model(run)
    (difference,) = export(trained, "ctranslate2", tmp_path / "fp32")
    assert difference.largest < 1e-5
    (difference,) = export(trained, "ctranslate2", tmp_path / "int8", "int8")
    assert 1e-5 < difference.largest < 0.2
    translator = CTranslate2Translator(tmp_path / "fp32")
    assert translator(SENTENCES, beam_size=1) == Translator(run)(SENTENCES, beam_size=1)


def test_ctranslate2_takes_no_lstm(runs, tmp_path, capsys):
    pytest.importorskip("ctranslate2")
    line = refused(capsys, runs["lstm"], tmp_path / "exported", to="ctranslate2")
    assert "--to safetensors" in line and not any(tmp_path.iterdir())


@pytest.mark.parametrize(("length_penalty", "best"), [(1.0, "a long one ."), (0.0, "short")])
def test_what_the_engine_finds_is_ranked_by_the_length_without_the_end_mark(length_penalty, best):
    """The log-probabilities -2.1 and -5.1: by 2 and 5 tokens, as the engine counts them, or by 1 and 4."""
    pytest.importorskip("ctranslate2")
    from tools.exporting.ctranslate2_model import best_hypothesis

    hypotheses = [["short"], ["a", "long", "one", "."]]
    scores = [-2.1 / 2**length_penalty, -5.1 / 5**length_penalty]
    result = SimpleNamespace(hypotheses=hypotheses, scores=scores)
    assert " ".join(best_hypothesis(result, length_penalty)) == best
    nothing = SimpleNamespace(hypotheses=[[]], scores=[-0.5])
    assert best_hypothesis(nothing, length_penalty) == []
