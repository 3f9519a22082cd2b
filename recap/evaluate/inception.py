"""The Inception network of FID: TensorFlow's of 2015-12-05, in the layout of torch-fidelity's converted weights.

It differs from torchvision's: average pooling leaves the padding out, and the last block uses max pooling (Heusel et
al. 2017; the differences are listed in pytorch-fid). Only the 2,048 pooled features are computed.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from hpc.base.errors import UserError

SIDE = 299
WEIGHTS = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"


def load_inception(path: str | Path) -> Inception:
    """The network with the weights in a file: torch-fidelity's .pth, or the same tensors as safetensors.

    Raises:
        UserError: there is no such file, or it has other weights. Nothing is ever downloaded.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(
            f"evaluate: there are no Inception weights at {path}. Download {WEIGHTS} (91 MB) and give its path, as in "
            "--features inception:weights-inception-2015-12-05-6726825d.pth."
        )
    network = Inception()
    try:
        tensors = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
        network.load_state_dict({name: t for name, t in tensors.items() if not name.startswith("fc.")})
    except Exception as error:  # torch.load raises many kinds of errors for damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"evaluate: {path} does not hold FID's Inception weights ({reason}). Expected: those of {WEIGHTS}."
        ) from error
    return network.eval().requires_grad_(False)


class Inception(nn.Module):
    """Maps uint8 images [N, 3, H, W] to float32 features [N, 2048].

    Images are resized to 299 x 299 as torchmetrics does (bilinear, antialiased), not as TensorFlow 1 did.
    """

    num_features = 2048

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3, same=True)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3)
        self.Mixed_5b = _A(192, 32)
        self.Mixed_5c = _A(256, 64)
        self.Mixed_5d = _A(288, 64)
        self.Mixed_6a = _B(288)
        self.Mixed_6b = _C(768, 128)
        self.Mixed_6c = _C(768, 160)
        self.Mixed_6d = _C(768, 160)
        self.Mixed_6e = _C(768, 192)
        self.Mixed_7a = _D(768)
        self.Mixed_7b = _E(1280, maximum=False)
        self.Mixed_7c = _E(2048, maximum=True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = F.interpolate(images.float(), (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)
        x = (x - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean((2, 3))


class _Conv(nn.Module):
    """Convolution, batch norm and ReLU. same: padded, so that height and width stay the same."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, same: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, "same" if same else 0, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv(x)))


def _average(x: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class _A(nn.Module):
    def __init__(self, inputs: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(inputs, 64, 1)
        self.branch5x5_1 = _Conv(inputs, 48, 1)
        self.branch5x5_2 = _Conv(48, 64, 5, same=True)
        self.branch3x3dbl_1 = _Conv(inputs, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3, same=True)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, same=True)
        self.branch_pool = _Conv(inputs, pooled, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(_average(x))], 1)


class _B(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = _Conv(inputs, 384, 3, stride=2)
        self.branch3x3dbl_1 = _Conv(inputs, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3, same=True)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), three, F.max_pool2d(x, 3, stride=2)], 1)


class _C(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(inputs, 192, 1)
        self.branch7x7_1 = _Conv(inputs, width, 1)
        self.branch7x7_2 = _Conv(width, width, (1, 7), same=True)
        self.branch7x7_3 = _Conv(width, 192, (7, 1), same=True)
        self.branch7x7dbl_1 = _Conv(inputs, width, 1)
        self.branch7x7dbl_2 = _Conv(width, width, (7, 1), same=True)
        self.branch7x7dbl_3 = _Conv(width, width, (1, 7), same=True)
        self.branch7x7dbl_4 = _Conv(width, width, (7, 1), same=True)
        self.branch7x7dbl_5 = _Conv(width, 192, (1, 7), same=True)
        self.branch_pool = _Conv(inputs, 192, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_average(x))], 1)


class _D(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3_1 = _Conv(inputs, 192, 1)
        self.branch3x3_2 = _Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = _Conv(inputs, 192, 1)
        self.branch7x7x3_2 = _Conv(192, 192, (1, 7), same=True)
        self.branch7x7x3_3 = _Conv(192, 192, (7, 1), same=True)
        self.branch7x7x3_4 = _Conv(192, 192, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, F.max_pool2d(x, 3, stride=2)], 1)


class _E(nn.Module):
    def __init__(self, inputs: int, maximum: bool) -> None:
        super().__init__()
        self._maximum = maximum
        self.branch1x1 = _Conv(inputs, 320, 1)
        self.branch3x3_1 = _Conv(inputs, 384, 1)
        self.branch3x3_2a = _Conv(384, 384, (1, 3), same=True)
        self.branch3x3_2b = _Conv(384, 384, (3, 1), same=True)
        self.branch3x3dbl_1 = _Conv(inputs, 448, 1)
        self.branch3x3dbl_2 = _Conv(448, 384, 3, same=True)
        self.branch3x3dbl_3a = _Conv(384, 384, (1, 3), same=True)
        self.branch3x3dbl_3b = _Conv(384, 384, (3, 1), same=True)
        self.branch_pool = _Conv(inputs, 192, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self._maximum else _average(x)
        three = torch.cat([self.branch3x3_2a(three), self.branch3x3_2b(three)], 1)
        double = torch.cat([self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)], 1)
        return torch.cat([self.branch1x1(x), three, double, self.branch_pool(pooled)], 1)
