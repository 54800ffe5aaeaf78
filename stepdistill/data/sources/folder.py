"""A folder of image files.

    DIR/…/name.png               an unconditional teacher: every image below DIR
    DIR/class/…/name.png         a conditional one: subfolders are the labels 0, 1, … in natural
                                 order (1, 2, …, 10)

PNG, JPEG and WebP. Hidden files are left out; anything else that is no image is refused by name, as
are links to folders. See `data.images` for the settings.
"""

from dataclasses import dataclass

from ...schema import ConfigError
from .. import listing
from ..images import Images
from ..pictures import SUFFIXES
from ..stored import Files


@dataclass(frozen=True)
class Folder(Images):
    """The settings of `Images`; path: the folder."""

    def find(self, classes: int | None) -> Files:
        if classes is None:
            return Files(self.path, listing.files(self.path, SUFFIXES), None)
        groups = listing.folders(self.path)
        names = [group.name for group in groups]
        if len(groups) != classes:
            raise ConfigError(
                f"{self.path}: {len(groups)} subfolders for the teacher's {classes} classes"
            )
        found = [listing.files(group.path, SUFFIXES) for group in groups]
        labels = [name for name, paths in zip(names, found) for _ in paths]
        return Files(self.path, [path for paths in found for path in paths], labels, names)
