"""Makes verify/goldens/metrics.safetensors: metrics by scikit-learn, POT, SciPy and CLIP_benchmark-style code, and
corrupted images by SciPy and Pillow.

Needs numpy, torch, scikit-learn, POT, SciPy and Pillow. Run from the repository root: python tools/metric_goldens.py [--check]
"""

from __future__ import annotations

import io
import re
import string
import sys
from pathlib import Path

import numpy as np
import ot
import torch
from PIL import Image
from scipy import stats
from scipy.ndimage import gaussian_filter
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.metrics import top_k_accuracy_score
from sklearn.neighbors import NearestNeighbors

from golden_file import Golden

TARGET = Path("verify/goldens/metrics.safetensors")
ANSWERS = [
    "Yes.", "the red  Apple", "It's two o'clock", "An  owl, a cat", "3.5", "3,000", "12:30", "none", "Ten!", "a",
    "left-right", "Don’t know", "ONE two THREE", "…", "U.S.", "blue (dark)", "thé", "4 . 5",
]
NUMBERS = ["none zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def unit(rows: torch.Tensor) -> torch.Tensor:
    """Rows of unit length, rounded to f32."""
    rows = torch.nn.functional.normalize(rows, dim=-1)
    return rows.to(torch.float32).to(torch.float64)


def batchwise_recall(scores: torch.Tensor, positive: torch.Tensor, k: int) -> float:
    """CLIP_benchmark's recall: a query counts when at least one of its positives is among the first k."""
    order = torch.argsort(scores, dim=1, descending=True, stable=True)[:, :k]
    hit = torch.gather(positive, 1, order).any(dim=1)
    return hit.double().mean().item()


def retrieval(golden: Golden, expected: dict) -> None:
    images = unit(golden.normal(24, 12))
    texts = unit(images.repeat_interleave(3, 0) + golden.normal(72, 12, scale=0.45))
    golden.store_exact("input.images", images)
    golden.store_exact("input.texts", texts)
    positive = torch.eye(24).repeat_interleave(3, 1).bool()
    scores = images @ texts.T
    for name, s, p in [("image_to_text", scores, positive), ("text_to_image", scores.T, positive.T)]:
        order = torch.argsort(s, dim=1, descending=True, stable=True)
        ranks = torch.gather(p, 1, order).double().argmax(dim=1).double() + 1
        expected[name] = {
            "recall": [batchwise_recall(s, p, k) for k in (1, 5, 10)],
            "median_rank": float(np.median(ranks.numpy())),
            "mean_rank": ranks.mean().item(),
        }


def classes(golden: Golden, expected: dict) -> None:
    centres = golden.normal(9, 16)
    labels = golden.integers(90, low=0, high=9)
    train = unit(centres[labels] + golden.normal(90, 16, scale=1.6))
    tested = golden.integers(60, low=0, high=9)
    test = unit(centres[tested] + golden.normal(60, 16, scale=1.6))
    prompts = unit(centres.repeat_interleave(4, 0) + golden.normal(36, 16, scale=0.8))
    for name, value in [("train", train), ("test", test), ("prompts", prompts)]:
        golden.store_exact(f"input.{name}", value)
    golden.store_exact("input.labels", labels)
    golden.store_exact("input.tested", tested)
    # open_clip: the mean of the templates' features, then unit length.
    weights = torch.nn.functional.normalize(prompts.reshape(9, 4, 16).mean(dim=1), dim=-1)
    scores = (test @ weights.T).numpy()
    expected["zero_shot"] = [top_k_accuracy_score(tested.numpy(), scores, k=k, labels=range(9)) for k in (1, 5)]
    # DINOv2: a vote of the nearest, weighted by exp(similarity / 0.07).
    nearest = NearestNeighbors(n_neighbors=10, metric="cosine").fit(train.numpy())
    distance, index = nearest.kneighbors(test.numpy())
    votes = np.zeros((60, 9))
    weight = torch.softmax(torch.from_numpy(1 - distance) / 0.07, dim=1).numpy()
    for row in range(60):
        np.add.at(votes[row], labels.numpy()[index[row]], weight[row])
    golden.store_exact("input.neighbours_predict", torch.from_numpy(votes.argmax(axis=1)))
    # The penalty is relative to the mean sum of squares of a feature about its mean.
    features = train.numpy()
    penalty = 0.05 * ((features - features.mean(0)) ** 2).sum() / 16
    ridge = Ridge(alpha=penalty).fit(features, np.eye(9)[labels.numpy()])
    golden.store_result("value.ridge", torch.from_numpy(ridge.predict(test.numpy())))


def clouds(golden: Golden, expected: dict) -> None:
    a = golden.normal(48, 10)
    b = golden.normal(48, 10, scale=1.3, offset=0.4)
    c = golden.normal(31, 10, scale=0.7)
    for name, value in [("a", a), ("b", b), ("c", c)]:
        golden.store_exact(f"input.{name}", value)
    a, b, c = a.numpy(), b.numpy(), c.numpy()
    costs = cdist(a, b)
    rows, columns = linear_sum_assignment(costs)
    uniform = np.full(48, 1 / 48)
    expected["nearest"] = cdist(a, c).min(axis=1).mean()
    expected["mean_distance"] = cdist(a, c).mean()
    expected["exact"] = ot.emd2(uniform, uniform, costs)
    assert abs(expected["exact"] - costs[rows, columns].mean()) < 1e-9
    directions = golden.normal(20, 10)
    directions = directions / directions.norm(dim=1, keepdim=True)
    golden.store_result("value.directions", directions)
    for name, other in [("sliced", b), ("sliced_unequal", c)]:
        expected[name] = float(ot.sliced_wasserstein_distance(a, other, projections=directions.numpy().T, p=2))
    for epsilon in (8.0, 2.0):
        value = {}
        for name, (x, y) in {"ab": (a, c), "aa": (a, a), "bb": (c, c)}.items():
            weights = [np.full(len(z), 1 / len(z)) for z in (x, y)]
            squares = cdist(x, y, "sqeuclidean")
            plan = ot.bregman.sinkhorn_log(*weights, squares, epsilon, numItermax=20000, stopThr=1e-13)
            value[name] = (plan * squares).sum()
        expected[f"sinkhorn_{epsilon}"] = value["ab"] - 0.5 * value["aa"] - 0.5 * value["bb"]
    pca = PCA(n_components=2, svd_solver="full").fit(b)
    signs = np.sign(pca.components_[np.arange(2), np.abs(pca.components_).argmax(axis=1)])
    golden.store_result("value.plane", torch.from_numpy(pca.transform(a) * signs))
    expected["variances"] = pca.explained_variance_.tolist()


def spaces(golden: Golden, expected: dict) -> None:
    images, texts = unit(golden.normal(40, 8, offset=0.3)), unit(golden.normal(40, 8))
    golden.store_exact("input.unit_images", images)
    golden.store_exact("input.unit_texts", texts)
    expected["gap"] = (images.mean(0) - texts.mean(0)).norm().item()
    expected["alignment"] = (images - texts).norm(dim=1).mean().item()
    expected["uniformity"] = torch.pdist(images).pow(2).mul(-2).exp().mean().log().item()
    x, y = golden.normal(30, 7), golden.normal(30, 11)
    y[:, :7] += x
    x, y = (z.to(torch.float32).to(torch.float64) for z in (x, y))
    golden.store_exact("input.x", x)
    golden.store_exact("input.y", y)
    # By kernels: HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)) with HSIC = tr(K H L H).
    centre = np.eye(30) - 1 / 30
    k, l = (z.numpy() @ z.numpy().T for z in (x, y))
    hsic = lambda p, q: np.trace(p @ centre @ q @ centre)  # noqa: E731
    expected["cka"] = hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))


def pictures(golden: Golden, expected: dict) -> None:
    """An image of broad waves and a sharp square, blurred and saved as JPEG."""
    side = 40
    y, x = np.mgrid[0:side, 0:side]
    planes = [np.sin(x / 5 + k) * np.cos(y / 7 - k) * 0.7 for k in range(3)]
    levels = np.stack([np.round((p + 1) * 127.5) for p in planes])
    levels[:, 10:20, 12:30] = np.array([250, 30, 90])[:, None, None]
    normal = (levels / 127.5 - 1).astype(np.float32)
    golden.store_exact("input.picture", torch.from_numpy(normal.astype(np.float64)))
    blurs = [gaussian_filter(normal.astype(np.float64), (0, s, s), mode="nearest", truncate=4)
             for s in (2.0 * side / 224, 6.0 * side / 224)]
    golden.store_result("value.blurred", torch.from_numpy(np.stack(blurs)), np.float32)
    files = []
    for quality in (25, 7):
        file = io.BytesIO()
        image = Image.fromarray(levels.transpose(1, 2, 0).astype(np.uint8))
        image.save(file, "JPEG", quality=quality, subsampling="4:2:0")
        files.append(np.asarray(Image.open(file)).transpose(2, 0, 1).astype(np.float64))
    golden.store_result("value.jpeg_levels", torch.from_numpy(np.stack(files)), np.float32)


def normalised(answer: str) -> str:
    """VQA-style by regular expressions, as the evaluator defines it."""
    text = re.sub(r"['’]", "", answer.lower())
    marks = "".join(c for c in string.punctuation + "…" if c not in ".,:")
    text = re.sub(f"[{re.escape(marks)}]", " ", text)
    text = re.sub(r"(?<!\d)[.,:]|[.,:](?!\d)", " ", text)
    words = {word: str(value) for value, names in enumerate(NUMBERS) for word in names.split()}
    kept = [w for w in text.split() if w not in {"a", "an", "the"}] or text.split()
    return " ".join(words.get(w, w) for w in kept)


def seeds(golden: Golden, expected: dict) -> None:
    a = golden.normal(5, scale=0.1, offset=0.6)
    b = golden.normal(5, scale=0.1, offset=0.5)
    golden.store_exact("input.seeds_a", a)
    golden.store_exact("input.seeds_b", b)
    a, b = a.numpy(), b.numpy()
    test = stats.ttest_rel(a, b)
    low, high = test.confidence_interval(0.95)
    expected["paired"] = {"p": test.pvalue, "mean": (a - b).mean(), "half_width": (high - low) / 2}
    expected["quantiles"] = {str(n): stats.t.ppf(0.975, n) for n in (1, 2, 3, 4, 9, 30)}


def main() -> int:
    expected: dict = {"answers": {answer: normalised(answer) for answer in ANSWERS}}
    golden = Golden("metrics", expected)
    for part in (retrieval, classes, clouds, spaces, seeds, pictures):
        part(golden, expected)
    if "--check" in sys.argv:
        problems = golden.differences(TARGET)
        print("\n".join(problems) or "goldens agree")
        return int(bool(problems))
    TARGET.write_bytes(golden.to_bytes())
    print(f"{TARGET}: {TARGET.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
