"""A folder of image files.

    DIR/…/name.png               an unconditional teacher: every image below DIR
    DIR/class/…/name.png         a conditional one: subfolders are the labels 0, 1, … in natural
                                 order (1, 2, …, 10)
    DIR/metadata.jsonl, …        one of prompts: captions as `data.captioned` reads them; others
                                 leave these aside

PNG, JPEG and WebP. Hidden files are left out; anything else that is no image is refused by name, as
are links to folders. See `data.images` for the settings.
"""

from dataclasses import dataclass
from pathlib import Path

from ...schema import ConfigError
from .. import listing
from ..captioned import BESIDE, CAPTIONS, METADATA
from ..captioned import captioned as read
from ..images import Images
from ..pictures import SUFFIXES
from ..stored import Files


@dataclass(frozen=True)
class Folder(Images):
    """The settings of `Images`; path: the folder."""

    def find(self, classes: int | None, captioned: bool = False) -> Files:
        if classes is None:
            found, said = read(Path(self.path))
            if captioned and said is None:
                raise ConfigError(
                    f"{self.path}: its images have no captions: write {METADATA}, {CAPTIONS}, or a "
                    f"{BESIDE} beside each"
                )
            root = str(Path(self.path))
            return Files(root, [str(path) for path in found], None, captions=said)
        groups = listing.folders(self.path)
        names = [group.name for group in groups]
        if len(groups) != classes:
            raise ConfigError(
                f"{self.path}: {len(groups)} subfolders for the teacher's {classes} classes"
            )
        found = [listing.files(group.path, SUFFIXES) for group in groups]
        labels = [name for name, paths in zip(names, found) for _ in paths]
        return Files(self.path, [path for paths in found for path in paths], labels, names)
