#!/bin/sh
# Check the pieces, put wheels/ together and check every wheel. Needs sh and python3 (standard library only).
set -eu
cd "$(dirname "$0")"
exec "${PYTHON:-python3}" - "$@" <<'END'
import hashlib, json, os, shutil, subprocess, sys, tarfile, threading

def digest(path):
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            sha.update(chunk)
    return sha.hexdigest()

def check(rows, folder):
    bad = []
    for row in rows:
        path = os.path.join(folder, row["name"])
        if not os.path.exists(path):
            bad.append(row["name"] + " is missing")
        elif digest(path) != row["sha256"]:
            bad.append(row["name"] + " is damaged")
    if bad:
        sys.exit("found: " + "; ".join(bad) + " | required: files as manifest.json lists them | fix: copy them again")

class Pieces:
    # One stream over all pieces, so that no second copy of the whole is needed on the disk.
    def __init__(self, paths):
        self.paths, self.file = list(paths), None
    def read(self, size):
        while self.file or self.paths:
            self.file = self.file or open(self.paths.pop(0), "rb")
            data = self.file.read(size)
            if data:
                return data
            self.file.close()
            self.file = None
        return b""

class Xz:
    # What the xz program makes of the pieces. It works on as many blocks at a time as there are cores, lzma on one.
    def __init__(self, program, pieces):
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([program, "-dc", "-T0"], stdin=pipe, stdout=pipe, stderr=pipe)
        self.error = None
        self.feeder = threading.Thread(target=self.feed, args=(pieces,))
        self.feeder.start()
    def feed(self, pieces):
        try:
            with self.process.stdin as file:
                for data in iter(lambda: pieces.read(1 << 20), b""):
                    file.write(data)
        except BrokenPipeError:
            pass  # xz has gone; its status says why.
        except OSError as error:
            self.error = error
    def read(self, size):
        data = self.process.stdout.read(size)
        if len(data) < size:
            # The end, or what looks like it: only xz knows.
            words = self.process.stderr.read().decode(errors="replace").split("\n")
            status = self.process.wait()
            self.feeder.join()
            if status or self.error:
                raise EOFError(str(self.error or words[0] or "xz ended with " + str(status)))
        return data
    def close(self):
        self.process.kill()
        self.process.wait()
        self.feeder.join()

with open("manifest.json") as file:
    manifest = json.load(file)
compression = manifest.get("compression", "none")
program = shutil.which("xz")
if compression == "xz" and not program:
    # Optional when Python is built; said before the minutes of checksums.
    try:
        import lzma
    except ImportError:
        sys.exit("found: no xz program, and " + sys.executable + " without its lzma module | required: one of them, for a bundle"
                 " under xz | fix: install xz, or PYTHON=another-python3 sh join.sh, or build the bundle without --compress")
if manifest["pieces"]:
    check(manifest["pieces"], "pieces")
    known = {row["name"] for row in manifest["wheels"]}
    os.makedirs("wheels", exist_ok=True)
    stream = Pieces(os.path.join("pieces", row["name"]) for row in manifest["pieces"])
    unreadable = (tarfile.TarError, EOFError)
    if compression == "xz" and program:
        stream = Xz(program, stream)
    elif compression == "xz":
        stream, unreadable = lzma.open(stream), unreadable + (lzma.LZMAError,)
    try:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 20) as tar:
            for member in tar:
                name = member.name[len("wheels/"):]
                if not member.isfile() or name not in known:
                    sys.exit("found: " + member.name + " in the pieces | required: wheels of manifest.json | fix: build the bundle again")
                with open(os.path.join("wheels", name), "wb") as out:
                    source = tar.extractfile(member)
                    for chunk in iter(lambda: source.read(1 << 20), b""):
                        out.write(chunk)
        # The tar ends before its last block does.
        while stream.read(1 << 20):
            pass
    except unreadable as error:
        sys.exit("found: pieces that cannot be unpacked (" + str(error) + ") | required: a whole archive | fix: build the bundle again")
    finally:
        if isinstance(stream, Xz):
            stream.close()
check(manifest["wheels"], "wheels")
print(os.path.abspath("wheels") + ": " + str(len(manifest["wheels"])) + " wheels, all as manifest.json says")
END
