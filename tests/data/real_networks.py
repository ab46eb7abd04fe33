"""Small networks that people put on microcontrollers, as their papers describe them, and rows of their shapes.

Dropout is left out. Rows are drawn at random: the tests ask whether a network is taken.
"""

import numpy as np
import torch
from torch import nn

ROWS = 96


def _rows(inputs, targets, dtype="float32", spread=1.0):
    random = np.random.RandomState(0)
    x = (random.normal(size=(ROWS, inputs)) * spread).astype(dtype)
    y = targets(random)
    return x[:64], y[:64], x[64:], y[64:]


def _labels(classes):
    return lambda random: np.arange(ROWS) % classes


# --- ToyADMOS machine sounds: the autoencoder of MLPerf Tiny (Banbury et al. 2021), 640 log-mel energies.


def machine_sounds(root):
    return _rows(640, lambda random: np.arange(ROWS) % 2, spread=20)


def autoencoder(inputs, hidden, classes, *, seed):
    layers, width = [], inputs
    for wide in (128, 128, 128, 128, 8, 128, 128, 128, 128):
        layers += [nn.Linear(width, wide), nn.BatchNorm1d(wide), nn.ReLU()]
        width = wide
    return nn.Sequential(*layers, nn.Linear(width, classes))


# --- Speech Commands: DS-CNN (Zhang et al. 2017) as in MLPerf Tiny, 49 x 10 MFCCs and 12 words.


def keywords(root):
    return _rows(490, _labels(12), spread=30)


def _block(channels):
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )


def ds_cnn(inputs, hidden, classes, *, seed):
    return nn.Sequential(
        nn.Unflatten(1, (1, 49, 10)),
        nn.Conv2d(1, 64, (10, 4), stride=2, padding=(5, 1), bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        *[_block(64) for _ in range(4)],
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, classes),
    )


# --- UCI human activities (Anguita et al. 2013): 128 samples of 9 signals, 6 activities; a convolution and an LSTM.


def activities(root):
    return _rows(128 * 9, _labels(6))


def activity_cnn(inputs, hidden, classes, *, seed):
    return nn.Sequential(
        nn.Unflatten(1, (9, 128)),
        nn.Conv1d(9, 32, 5),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(32, 32, 5),
        nn.ReLU(),
        nn.AdaptiveMaxPool1d(4),
        nn.Flatten(),
        nn.Linear(128, classes),
    )


class ActivityLstm(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.recurrent = nn.LSTM(9, 32, batch_first=True)
        self.out = nn.Linear(32, classes)

    def forward(self, x):
        return self.out(self.recurrent(x.unflatten(1, (128, 9)))[0][:, -1])


def activity_lstm(inputs, hidden, classes, *, seed):
    return ActivityLstm(classes)


# --- MIT-BIH heartbeats (Kachuee et al. 2018): 187 samples of one lead, 5 classes, a residual 1-D convolution.


def heartbeats(root):
    return _rows(187, _labels(5))


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.first = nn.Conv1d(channels, channels, 5, padding=2)
        self.second = nn.Conv1d(channels, channels, 5, padding=2)
        self.pool = nn.MaxPool1d(5, stride=2)

    def forward(self, x):
        return self.pool(torch.relu(x + self.second(torch.relu(self.first(x)))))


def heartbeat_cnn(inputs, hidden, classes, *, seed):
    return nn.Sequential(
        nn.Unflatten(1, (1, 187)),
        nn.Conv1d(1, 32, 5),
        *[Residual(32) for _ in range(5)],
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Linear(32, classes),
    )


# --- California housing (Pace and Barry 1997): 8 features, one price.


def houses(root):
    return _rows(8, lambda random: random.normal(size=ROWS) + 2)


def house_mlp(inputs, hidden, classes, *, seed):
    return nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, classes))


# --- Yeast genes (Elisseeff and Weston 2001): 103 features, 14 labels at once.


def genes(root):
    return _rows(103, lambda random: random.randint(0, 2, (ROWS, 14)))


def gene_mlp(inputs, hidden, classes, *, seed):
    return nn.Sequential(nn.Linear(inputs, 50), nn.ReLU(), nn.Linear(50, classes))


# --- A gesture or none: the network of TensorFlow Lite Micro's magic wand, 128 samples of 3 axes in 16 bits.


def gestures(root):
    return _rows(384, lambda random: np.arange(ROWS) % 2, "int16", 1000)


def magic_wand(inputs, hidden, classes, *, seed):
    return nn.Sequential(
        nn.Unflatten(1, (1, 128, 3)),
        nn.ZeroPad2d((1, 1, 1, 2)),
        nn.Conv2d(1, 8, (4, 3)),
        nn.ReLU(),
        nn.MaxPool2d((3, 3)),
        nn.ZeroPad2d((0, 0, 1, 2)),
        nn.Conv2d(8, 16, (4, 1)),
        nn.ReLU(),
        nn.MaxPool2d((3, 1)),
        nn.Flatten(),
        nn.Linear(224, 16),
        nn.ReLU(),
        nn.Linear(16, classes),
    )


# --- CIFAR-10: ResNet-8 as in MLPerf Tiny (Banbury et al. 2021), here for images of 16 x 16 pixels.


def pictures(root):
    random = np.random.RandomState(0)
    x = random.randint(0, 256, (ROWS, 3, 16, 16)).astype(np.uint8)
    y = np.arange(ROWS) % 10
    return x[:64], y[:64], x[64:], y[64:]


class Stack(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride) if stride > 1 else nn.Identity()

    def forward(self, x):
        return torch.relu(self.second(torch.relu(self.norm(self.first(x)))) + self.shortcut(x))


class ResNet8(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.stacks = nn.Sequential(Stack(16, 16, 1), Stack(16, 32, 2), Stack(32, 64, 2))
        self.head = nn.Linear(64, classes)

    def forward(self, x):
        x = torch.relu(self.stem(x.unflatten(1, (3, 16, 16))))
        return self.head(self.stacks(x).mean((2, 3)))


def resnet8(inputs, hidden, classes, *, seed):
    return ResNet8(classes)
