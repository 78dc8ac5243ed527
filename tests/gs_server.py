"""The bucket gs://bucket on this machine, as a program: PORT.

TensorStore reads the generation of what it reads, and writes on condition of one. The emulator
leaves out both; they are added here, as Google's API has them
(https://cloud.google.com/storage/docs/request-preconditions). It cannot move objects, and gcsfs
copies them then; an answer that is final saves its retries.
"""

import sys
from http import HTTPStatus
from typing import Any

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

download, upload = objects.download, objects._media_upload


def generation(request: Any, storage: Any, name: str) -> str:
    try:
        return storage.get_file_obj(request.params["bucket_name"], name)["generation"]
    except NotFound:
        return "0"


def download_with_generation(request: Any, response: Any, storage: Any) -> None:
    there = generation(request, storage, request.params["object_id"])
    if there == "0":
        response.status = HTTPStatus.NOT_FOUND
        return
    response["x-goog-generation"] = there
    if request.query.get("ifGenerationNotMatch") == [there]:
        response.status = HTTPStatus.NOT_MODIFIED
    else:
        download(request, response, storage)


def upload_on_condition(request: Any, response: Any, storage: Any) -> None:
    there = generation(request, storage, request.query["name"][0])
    if request.query.get("ifGenerationMatch", [there]) == [there]:
        upload(request, response, storage)
    else:
        response.status = HTTPStatus.PRECONDITION_FAILED


class Handler(server.RequestHandler):
    def do_POST(self) -> None:
        if "/moveTo/" in self.path:
            self.send_error(HTTPStatus.BAD_REQUEST)
        else:
            super().do_POST()


if __name__ == "__main__":
    objects.download, objects._media_upload = download_with_generation, upload_on_condition
    server.RequestHandler = Handler
    server.create_server(
        "127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket="bucket"
    ).run()
