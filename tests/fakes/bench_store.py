"""`serve_app.store.bench` against a server of this machine.

    python -m tests.fakes.bench_store [--mib 1024] [--shard-mib 64] [--rounds 5] [--server files]

`files` costs little to serve, so that the clients are compared; `moto` is what the tests use, and
copies a whole object for each part of it: keep its shards small.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from serve_app.store.bench import bench
from serve_app.store.place import s3_place
from serve_app.store.progress import Silent
from serve_app.store.pull import into_folder
from serve_app.store.push import push
from serve_app.store.stored import VARIANT_JSON
from tests.fakes.large_checkpoint import write_large
from tests.fakes.s3 import BUCKET, FakeS3, client


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--shard-mib", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--server", choices=("files", "moto"), default="files")
    asked = parser.parse_args()
    os.environ.update(
        AWS_ACCESS_KEY_ID="testing",
        AWS_SECRET_ACCESS_KEY="testing",
        AWS_DEFAULT_REGION="us-east-1",
        AWS_EC2_METADATA_DISABLED="true",
    )
    with tempfile.TemporaryDirectory(prefix="quantile-bench-") as parent, FakeS3() as s3:
        os.environ["AWS_ENDPOINT_URL"] = s3.url
        client("s3").create_bucket(Bucket=BUCKET)
        folder = write_large(Path(parent) / "made", asked.mib, asked.shard_mib)
        place = push(folder, s3_place(f"s3://{BUCKET}/m"), Silent(), time.time()).place
        shutil.rmtree(folder)
        if asked.server == "moto":
            bench(place.uri, asked.rounds, 8, None)
            return
        objects = Path(parent) / "objects" / BUCKET / place.folder.rstrip("/")
        objects.parent.mkdir(parents=True)
        into_folder(place.uri, objects)
        record = client("s3").get_object(Bucket=BUCKET, Key=place.folder + VARIANT_JSON)
        (objects / VARIANT_JSON).write_bytes(record["Body"].read())
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.fakes.s3_files", str(Path(parent) / "objects")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            os.environ["AWS_ENDPOINT_URL"] = server.stdout.readline().strip()
            bench(place.uri, asked.rounds, 8, None)
        finally:
            server.stdin.close()
            server.wait()


if __name__ == "__main__":
    main()
