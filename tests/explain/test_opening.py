"""Whatever is named becomes a classifier, or a sentence that says why not."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diffit.errors import CheckpointError, UsageError
from diffit.explain.classifier_folder import ClassifierCard, save_classifier
from diffit.explain.opening import open_classifier
from diffit.explain.resnet import CIFAR10, open_cifar_resnet
from diffit.explain.vit import ViTConfig, build_vit
from diffit.training.loop import train
from tiny import tiny_run


class Published(nn.Module):
    """The network of a `.th` file as it is trained: with batch norms, in their original names."""

    def __init__(self, depth=2, classes=10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        for stage, width in enumerate((16, 32, 64), 1):
            first = width if stage == 1 else width // 2
            blocks = [PublishedBlock(first if i == 0 else width, width) for i in range(depth)]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.avg_pool2d(x, x.shape[3]).flatten(1))


class PublishedBlock(nn.Module):
    def __init__(self, inputs, width):
        super().__init__()
        self.inputs, self.width = inputs, width
        stride = 1 if inputs == width else 2
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.inputs != self.width:
            quarter = self.width // 4
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, quarter, quarter))
        return F.relu(out + x)


def published(classes=10):
    """Random weights and statistics of norms that are nothing special."""
    torch.manual_seed(0)
    network = Published(classes=classes)
    for name, tensor in network.state_dict().items():
        if "bn" in name and tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    return network.eval()


def write_th(path, network):
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"best_prec1": 91.7, "state_dict": state}, path)
    return path


@pytest.fixture
def images():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_a_resnet_answers_as_the_network_of_its_file_does(tmp_path, images):
    network = published()
    classifier = open_classifier(write_th(tmp_path / "resnet14.th", network))
    mean, std = (
        torch.tensor(x)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    with torch.no_grad():
        expected = network(((images + 1) / 2 - mean) / std)
    assert torch.allclose(classifier(images), expected, rtol=1e-4, atol=1e-5)
    assert (classifier.shape, classifier.classes) == ((3, 32, 32), 10)
    assert classifier.class_names == CIFAR10
    assert not any(p.requires_grad for p in classifier.parameters())
    assert classifier(F.interpolate(images, 48)).shape == (2, 10)


def test_a_resnet_of_other_classes_calls_them_by_number(tmp_path):
    classifier = open_classifier(write_th(tmp_path / "r.th", published(classes=4)))
    assert classifier.class_names == ("0", "1", "2", "3")


def small_vit():
    return build_vit(ViTConfig(size=8, channels=1, patch=2, width=8, depth=1, heads=2, classes=3))


def test_our_own_folder_is_opened_alone_or_in_the_folder_of_its_run(tmp_path):
    vit = small_vit()
    x = torch.zeros(1, 1, 8, 8)
    for place in ("classifier", "run/classifier"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        save_classifier(tmp_path / place, vit, ClassifierCard(vit=vit.config))
    for place in ("classifier", "run", "run/classifier"):
        assert torch.equal(open_classifier(str(tmp_path / place))(x), vit(x))


@pytest.fixture
def transformers_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=8, patch_size=4, id2label={0: "cat", 1: "dog"},
    )  # fmt: skip
    folder = tmp_path / "transformers"
    transformers.utils.logging.disable_progress_bar()
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    told = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 8, "width": 8}}
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    return folder


def test_a_folder_of_transformers_and_a_repository_of_the_hub_are_the_same(
    transformers_folder, hub
):
    hub.add("someone/cats-and-dogs", transformers_folder)
    x = torch.zeros(1, 3, 8, 8)
    local = open_classifier(transformers_folder)
    assert local.class_names == ("cat", "dog")
    assert torch.equal(open_classifier("someone/cats-and-dogs")(x), local(x))


def test_a_repository_that_holds_no_classifier_is_refused(tmp_path, hub):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "README.md").write_text("nothing")
    hub.add("someone/nothing", tmp_path / "empty")
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        open_classifier("someone/nothing")
    with pytest.raises(UsageError, match="name the repository alone, someone/nothing"):
        open_classifier("someone/nothing:model.safetensors")


class Evil:
    def __reduce__(self):
        return (print, ("run",))


def test_a_file_that_could_run_code_is_not_loaded(tmp_path, capsys):
    torch.save({"state_dict": Evil()}, tmp_path / "evil.th")
    with pytest.raises(CheckpointError, match="could run code"):
        open_classifier(tmp_path / "evil.th")
    assert capsys.readouterr().out == ""


def test_a_cut_file_is_refused(tmp_path):
    whole = write_th(tmp_path / "r.th", published()).read_bytes()
    for share in (0, 0.1, 0.5, 0.99):
        (tmp_path / "cut.th").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(CheckpointError):
            open_classifier(tmp_path / "cut.th")


def without(name):
    state = dict(published().state_dict())
    del state[name]
    return state


@pytest.mark.parametrize(
    "state",
    [
        {"weight": torch.zeros(2)},
        without("layer2.1.bn2.running_var"),
        without("linear.bias"),
        without("layer3.0.conv2.weight"),
        {**published().state_dict(), "linear.weight": torch.zeros(10)},
        {**published().state_dict(), "conv1.weight": torch.zeros(16, 1, 3, 3)},
        {**published().state_dict(), "layer1.0.shortcut.0.weight": torch.zeros(1)},
    ],
)
def test_a_file_of_another_network_is_refused(tmp_path, state):
    torch.save(state, tmp_path / "other.th")
    with pytest.raises(CheckpointError, match="no ResNet for CIFAR"):
        open_cifar_resnet(tmp_path / "other.th")


def test_what_is_no_classifier_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "training.yaml").write_text("{}")
    train(tiny_run(images=16), tmp_path / "denoiser", quiet=True)
    (checkpoint,) = (tmp_path / "denoiser" / "checkpoints").iterdir()
    for place, sentence in {
        tmp_path / "none": "there is nothing at",
        "no\0name": "there is nothing at",
        "x" * 5000: "there is nothing at",
        tmp_path / "notes.txt": "a file that holds no classifier",
        tmp_path
        / "empty": "holds no classifier; name a folder of `diffit explain train-classifier`",
        tmp_path / "begun": "a training that has not ended",
        tmp_path / "denoiser": "holds no classifier",
        checkpoint: "holds no classifier",
    }.items():
        with pytest.raises(CheckpointError) as error:
            open_classifier(place)
        assert sentence in str(error.value)


def test_a_damaged_folder_is_refused(tmp_path):
    vit = small_vit()
    save_classifier(tmp_path / "c", vit, ClassifierCard(vit=vit.config))
    (tmp_path / "c" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="is damaged"):
        open_classifier(tmp_path / "c")
