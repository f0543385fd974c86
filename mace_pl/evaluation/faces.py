"""Whose face an image shows: a judge of erased people, for H_c."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mace_pl.errors import UserError, install
from mace_pl.files.paths import resolve
from mace_pl.images.files import read_image
from mace_pl.images.manifest import read_folder

OTHER = "somebody else"
SHARPNESS = 20.0  # of the softmax over cosines; what is seen does not depend on it


class Faces(nn.Module):
    """Whose face an image shows: YuNet finds it, and SFace compares it with images of each name.

    A :class:`mace_pl.evaluation.clip.Judge`. The largest face of an image is the person whose mean reference embedding
    is the nearest, or ``somebody else`` where none is near; an image without a face has a row of zeros.

    The code is OpenCV's (extra ``faces``). The two networks are files of its model zoo, which have to be fetched from
    https://github.com/opencv/opencv_zoo: models/face_detection_yunet/face_detection_yunet_2023mar.onnx (MIT) and
    models/face_recognition_sface/face_recognition_sface_2021dec.onnx (Apache-2.0).

    Args:
        references: folder with a folder of images for each name, called by the name as in data.names.
        detector: the file of YuNet.
        recogniser: the file of SFace.
        threshold: least cosine to a name's mean embedding; OpenCV gives 0.363 for two faces of one person.
        face_threshold: least score of a face; low, as a face that is overlooked would count for the erasure.
    """

    def __init__(
        self,
        references: str,
        detector: str = "models/face_detection_yunet_2023mar.onnx",
        recogniser: str = "models/face_recognition_sface_2021dec.onnx",
        threshold: float = 0.363,
        face_threshold: float = 0.6,
    ) -> None:
        super().__init__()
        if not -1 < threshold < 1:
            raise UserError(f"judge.threshold={threshold} must be a cosine, between -1 and 1.")
        if not 0 < face_threshold < 1:
            raise UserError(f"judge.face_threshold={face_threshold} must be between 0 and 1.")
        try:
            import cv2
        except ImportError as error:
            raise UserError(f"judge: OpenCV is not installed. {install('faces')}") from error
        network = _network("detector", detector)
        self.detector: Any = cv2.FaceDetectorYN.create(network, "", (0, 0), score_threshold=face_threshold)
        self.recogniser: Any = cv2.FaceRecognizerSF.create(_network("recogniser", recogniser), "")
        self.threshold = threshold
        people = _people(resolve(references))
        self.names = [*people, OTHER]
        self.register_buffer("means_CD", torch.stack([self.mean(files) for files in people.values()]))

    def mean(self, files: Sequence[Path]) -> Tensor:
        """The unit mean embedding [D] of a person's images.

        Raises:
            UserError: naming one without a face.
        """
        faces = []
        for file in files:
            face = self.embed(read_image(file, "judge.references"))
            if face is None:
                raise UserError(f"judge.references: no face is found in {file}. Replace or remove it.")
            faces.append(face)
        return nn.functional.normalize(torch.stack(faces).mean(0), dim=-1)

    def embed(self, image: Image.Image) -> Tensor | None:
        """The unit embedding [D] of the largest face; None where there is none."""
        bgr = np.ascontiguousarray(np.asarray(image.convert("RGB"))[..., ::-1])
        self.detector.setInputSize(image.size)
        faces = self.detector.detect(bgr)[1]  # [F, 15]: left, top, width, height, five landmarks, score
        if faces is None or len(faces) == 0:
            return None
        largest = faces[np.argmax(faces[:, 2] * faces[:, 3])]
        feature = self.recogniser.feature(self.recogniser.alignCrop(bgr, largest))
        return nn.functional.normalize(torch.from_numpy(np.array(feature)).flatten(), dim=-1)

    def forward(self, images: Sequence[Image.Image]) -> Tensor:
        """Probabilities [N, C] over ``names``: a softmax over the cosines, with the threshold as the last of them."""
        means_CD: Any = self.means_CD
        chances: Tensor = means_CD.new_zeros(len(images), len(self.names))
        for row, image in zip(chances, images, strict=True):
            face = self.embed(image)
            if face is not None:
                cosines = means_CD @ face.to(means_CD)
                row[:] = (SHARPNESS * torch.cat([cosines, cosines.new_tensor([self.threshold])])).softmax(-1)
        return chances


def _network(setting: str, file: str) -> str:
    """The path of a network's file.

    Raises:
        UserError: it is not there.
    """
    path = resolve(file)
    if not path.is_file():
        raise UserError(
            f"judge.{setting}={file} is no file. Fetch it from OpenCV's model zoo, https://github.com/opencv/opencv_zoo."
        )
    return str(path)


def _people(folder: Path) -> dict[str, list[Path]]:
    """The images of each name.

    Raises:
        UserError: no folder of a name, or one without images.
    """
    folders = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not folders:
        raise UserError(f"judge.references={folder} holds no folders. Give a folder with one of images per name.")
    return {path.name: read_folder(path, "judge.references") for path in folders}
