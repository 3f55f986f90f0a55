# SPDX-License-Identifier: GPL-2.0
"""Builds the initramfs of a guest, without root and without temporary files."""
import os
import stat
import struct
from pathlib import Path


class InitramfsError(Exception):
    """A file cannot be put into the initramfs; the text says why."""


def is_dynamic(program: bytes) -> bool:
    """Whether an x86-64 ELF file asks for a dynamic loader."""
    if program[:5] != b"\x7fELF\x02":
        return False
    table, = struct.unpack_from("<Q", program, 32)
    size, count = struct.unpack_from("<HH", program, 54)
    kinds = (struct.unpack_from("<I", program, table + i * size)[0] for i in range(count))
    return 3 in kinds  # PT_INTERP


def cpio_entry(path: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    """One member of a cpio archive in the "newc" format."""
    name = os.fsencode(path.lstrip("/")) + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields) + name
    return header + b"\0" * (-len(header) % 4) + data + b"\0" * (-len(data) % 4)


def archive(files: dict[str, bytes]) -> bytes:
    """An archive of the files and the directories they and the guest's init need."""
    folders = {"/bin", "/dev", "/proc", "/root", "/run", "/sbin", "/sys", "/tmp", "/usr/bin",
               "/usr/sbin"}
    for path in [*folders, *files]:
        folders.update(str(parent) for parent in Path(path).parents if parent != Path("/"))
    entries = [cpio_entry(folder, stat.S_IFDIR | 0o755) for folder in sorted(folders)]
    entries += [cpio_entry("/dev/console", stat.S_IFCHR | 0o600, device=(5, 1))]
    entries += [cpio_entry(path, stat.S_IFREG | 0o755, data) for path, data in files.items()]
    return b"".join(entries) + cpio_entry("TRAILER!!!", 0)


def read_file(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InitramfsError(f"cannot read {path}: {error.strerror}") from error


def added_files(additions: list[str]) -> dict[str, bytes]:
    files = {}
    for addition in additions:
        source, _, target = addition.partition(":")
        program = read_file(source)
        if is_dynamic(program):
            raise InitramfsError(f"{source} is dynamically linked, the initramfs has no libraries: "
                                 "link it with -static or use --root host")
        files[target or f"/bin/{Path(source).name}"] = program
    return files
