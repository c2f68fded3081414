"""The image of conf/Dockerfile, built by its own commands in a bare Debian: `make test-image`; root.

There is no Docker here: each instruction runs with chroot, in a root that debootstrap has made.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
DEBIAN = ROOT / "build/image"  # of `make test-image`
CHROOT = shutil.which("chroot", path="/usr/sbin:/usr/bin:/sbin:/bin") or "chroot"
LIMIT_S = 3600.0
STUDY = """
name: image
study_dir: /home/spark/study
task: tabular
data: {path: /home/spark/table.csv, label: y}
objective: {metric: accuracy, mode: max}
space: {learning_rate: {type: loguniform, low: 1e-3, high: 1e-1}}
search: {max_resource: 3}
budget: {trials: 3}
mlflow: {tracking_uri: "sqlite:////home/spark/mlflow.db"}
"""

# Spark passes the options that Java 17 needs to the executors that Kubernetes starts for it.
OPENED = ("java.lang", "java.lang.invoke", "java.nio", "java.util", "java.util.concurrent", "sun.nio.ch")
OPTIONS = {
    "SPARK_JAVA_OPT_0": "-Dspark.driver.port=7178",
    **{f"SPARK_JAVA_OPT_{i}": f"--add-opens=java.base/{p}=ALL-UNNAMED" for i, p in enumerate(OPENED, 1)},
}

pytestmark = [
    pytest.mark.timeout(2 * LIMIT_S),
    pytest.mark.skipif(not (DEBIAN / "etc").is_dir(), reason="make test-image makes a Debian, as root"),
]


class Image:
    """A folder with the file system of the image."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = {"DEBIAN_FRONTEND": "noninteractive"}
        self.user, self.folder = "0", "/"
        self.entrypoint: list[str] = []
        self._mounts: list[Path] = []
        self._host: dict[str, str] = {}
        for name in ("proc", "dev"):
            self._bind(Path("/") / name)
        # The machine's way to the package index; its certificates may be its own.
        for file in ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", "/etc/xdg/pip"):
            if Path(file).exists():
                self._copy(Path(file), Path(file))
        certificates = Path("/etc/ssl/certs/ca-certificates.crt")
        if certificates.exists():
            self._copy(certificates, Path("/opt/certificates.crt"))
            self._host = {"PIP_CERT": "/opt/certificates.crt"}
        listed = subprocess.run(["pip", "config", "list"], capture_output=True, text=True).stdout
        # An index in the file system has its files beside the pages that list them.
        folders = [*re.findall(r"'(/[^\s']*)'", listed), *re.findall(r"file://(/[^\s']*)/", listed)]
        for folder in dict.fromkeys(filter(Path.is_dir, map(Path, folders))):
            self._bind(folder)

    def build(self, dockerfile: Path) -> None:
        text = re.sub(r"(?m)^#.*\n", "", dockerfile.read_text()).replace("\\\n", " ")
        for line in filter(None, map(str.strip, text.splitlines())):
            instruction, _, rest = line.partition(" ")
            match instruction:
                case "FROM":
                    assert rest.startswith("debian:")
                case "RUN":
                    self.run("/bin/sh", "-c", rest)
                case "COPY":
                    *sources, target = rest.split()
                    for source in sources:
                        name = source if target.endswith("/") else ""
                        self._copy(ROOT / source, Path(target) / name)
                case "ENV":
                    name, _, value = rest.partition("=")
                    for known, before in self.environment.items():
                        value = value.replace(f"${known}", before)
                    self.environment[name] = value
                case "USER":
                    self.user = rest
                case "WORKDIR":
                    self.folder = rest
                case "ENTRYPOINT":
                    self.entrypoint = json.loads(rest)
                case _:
                    raise AssertionError(f"{instruction} is not known here")

    def run(self, *words: str, **environment: str) -> str:
        """Run a command to its end."""
        process = self.start(*words, **environment)
        output, _ = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, output[-4000:]
        return str(output)

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        """Start a command in the folder and with the user of the image."""
        command = f"cd {self.folder} && exec {shlex.join(words)}"
        variables = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": self.folder, **self.environment}
        kept = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        return subprocess.Popen(
            [CHROOT, f"--userspec={self.user}:0", str(self.root), "/bin/sh", "-c", command],
            env={**kept, **self._host, **variables, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def write(self, name: str, text: str) -> None:
        file = self.root / name.lstrip("/")
        file.write_text(text)
        shutil.chown(file, 185)

    def close(self) -> None:
        for place in reversed(self._mounts):
            subprocess.run(["umount", "--lazy", str(place)], check=False)

    def _bind(self, folder: Path) -> None:
        place = self.root / folder.relative_to("/")
        place.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--rbind", "--make-rslave", str(folder), str(place)], check=True)
        self._mounts.append(place)

    def _copy(self, source: Path, target: Path) -> None:
        place = self.root / target.relative_to("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            skipped = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, place, dirs_exist_ok=True, ignore=skipped)
        else:
            shutil.copy(source, place)


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    namespaces = {os.readlink(f"/proc/{process}/ns/mnt") for process in ("self", os.getppid())}
    assert len(namespaces) == 2, "folders of this machine would be mounted: use make test-image"
    image = Image(DEBIAN)
    try:
        image.build(ROOT / "conf/Dockerfile")
        rng = np.random.default_rng(0)
        x = rng.normal(size=400)
        table = pd.DataFrame({"x": x, "y": np.where(x > 0, "yes", "no")})
        image.write("/home/spark/table.csv", table.to_csv(index=False))
        image.write("/home/spark/study.yaml", STUDY)
        yield image
    finally:
        image.close()


def test_driver_and_executor_of_the_image_run_a_study(image: Image) -> None:
    """The executor starts as Kubernetes starts it, and joins a driver that waits for one."""
    master = image.start("spark-class", "org.apache.spark.deploy.master.Master", "--host", "127.0.0.1")
    executor = None
    try:
        driver = image.start(
            *image.entrypoint,
            *("spark-submit", "--master", "spark://127.0.0.1:7077"),
            *("--properties-file", "/opt/spark_hpo/conf/spark-defaults.conf"),
            *("--conf", "spark.driver.host=127.0.0.1", "--conf", "spark.driver.port=7178"),
            *("/opt/spark_hpo/jobs/tune.py", "--config", "/home/spark/study.yaml"),
        )
        while driver.poll() is None and executor is None:
            time.sleep(1)
            listening = Path("/proc/net/tcp6").read_text() + Path("/proc/net/tcp").read_text()
            if f":{7178:04X} " in listening:
                executor = image.start(
                    *image.entrypoint,
                    "executor",
                    SPARK_DRIVER_URL="spark://CoarseGrainedScheduler@127.0.0.1:7178",
                    SPARK_EXECUTOR_ID="1",
                    SPARK_EXECUTOR_CORES="2",
                    SPARK_EXECUTOR_MEMORY="512m",
                    SPARK_APPLICATION_ID="image",
                    SPARK_EXECUTOR_POD_IP="127.0.0.1",
                    SPARK_EXECUTOR_POD_NAME="image-1",
                    **OPTIONS,
                )
        output, _ = driver.communicate(timeout=600)
        assert driver.returncode == 0, output[-4000:]
        result = json.loads(output.splitlines()[-1])
        assert sum(result["trials"].values()) == 3
    finally:
        for process in filter(None, (executor, master)):
            process.kill()


def test_image_runs_any_command_as_an_ordinary_user(image: Image) -> None:
    assert image.run(*image.entrypoint, "id", "-u").splitlines()[-1] == "185"
    assert "spark-hpo run" in image.run(*image.entrypoint, "spark-hpo", "--help")
