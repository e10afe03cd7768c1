"""A server that speaks as much of cryoSPARC's API as an External job needs, to cryosparc-tools itself.

Its answers are the client's own models, and it refuses what cryoSPARC refuses: outputs of a job that is
over, data without the slots that were promised, rows that the input does not have.
"""

from __future__ import annotations

import datetime
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs

import numpy as np
import uvicorn
from cryosparc.dataset import Dataset
from cryosparc.models.auth import Token
from cryosparc.models.event import TextEvent
from cryosparc.models.job import Job
from cryosparc.models.job_spec import (
    Connection,
    Input,
    InputSpec,
    JobSpec,
    Output,
    OutputSpec,
)
from cryosparc.models.resource import ResourceSpec
from cryosparc.models.user import User
from fastapi import Body, FastAPI, HTTPException, Query, Request, Response

SUFFIX = "/api/cmd"
EMAIL, TOKEN = "ali@example.com", "a-token"
_ACTIVE = ("running", "waiting")
_FORM = {
    "requestBody": {
        "content": {
            "application/x-www-form-urlencoded": {"schema": {"title": "Form", "type": "object"}}
        },
        "required": True,
    }
}


def _job(uid: str, kind: str, status: str) -> Job:
    now = datetime.datetime.now(datetime.UTC)
    resources = ResourceSpec()
    spec = JobSpec(type=kind, ui_tile_width=1, ui_tile_height=1, resource_spec=resources)
    given = {"uid": uid, "project_uid": "P1", "uid_num": int(uid[1:]), "project_uid_num": 1}
    given |= {"job_dir": uid, "job_dir_size_last_updated": now, "status": status, "spec": spec}
    return Job.model_validate({**given, "status_num": 0, "build_errors": []})


class Server:
    """One project with one finished job, J1, that has particles.

    Args:
        project: its folder.
        particles: the output ``particles`` of J1.

    Attributes:
        jobs: by uid.
        saved: what was saved, by job and output.
        logged: lines of the jobs' logs.
        url: set while it runs.
    """

    def __init__(self, project: Path, particles: Dataset) -> None:
        self.project = project
        first = _job("J1", "class_2D_new", "completed")
        first.spec.outputs.root["particles"] = Output(type="particle", title="Particles")
        self.jobs = {"J1": first}
        self.saved = {("J1", "particles"): particles}
        self.logged: list[str] = []
        self.url = ""

    def input_of(self, job: str, name: str) -> Dataset:
        joined = self.jobs[job].spec.inputs.root[name].connections[0]
        return self.saved[joined.job_uid, joined.output]

    def app(self) -> FastAPI:
        api = FastAPI(separate_input_output_schemas=False)
        jobs, path = self.jobs, "/projects/{project_uid}/jobs/{job_uid}"

        @api.middleware("http")
        async def known(request: Request, call: Any) -> Response:
            free = request.url.path.endswith(("/openapi.json", "/login"))
            if not free and request.headers.get("Authorization") != f"Bearer {TOKEN}":
                return Response(status_code=401)
            return await call(request)

        @api.post("/login", summary="login", openapi_extra=_FORM)
        async def login(request: Request) -> Token:
            form = parse_qs((await request.body()).decode())
            if form.get("username") != [EMAIL] or len(form["password"][0]) != 64:
                raise HTTPException(401, "wrong password")
            return Token(access_token=TOKEN, token_type="bearer")

        @api.get("/users/me", summary="users.me")
        def me() -> User:
            return User(name="ali", first_name="Ali", last_name="B")

        @api.get("/version", summary="config.get_version")
        def get_version() -> str:
            return "v5.0.3"

        @api.get(path, summary="jobs.find_one")
        def find_one(project_uid: str, job_uid: str) -> Job:
            return jobs[job_uid]

        @api.post("/projects/{project_uid}/workspaces/{workspace_uid}/jobs", summary="jobs.create")
        def create(project_uid: str, workspace_uid: str, type: str, title: str = "",  # noqa: A002
                   description: str = "") -> Job:  # fmt: skip
            made = _job(f"J{len(jobs) + 1}", type, "building")
            made.title = title
            (self.project / made.uid).mkdir(parents=True, exist_ok=True)
            jobs[made.uid] = made
            return made

        @api.put(path + "/inputs/{input_name}", summary="jobs.add_external_input")
        def add_input(project_uid: str, job_uid: str, input_name: str, body: InputSpec) -> Job:
            given = body.model_dump(exclude={"slots"})
            jobs[job_uid].spec.inputs.root[input_name] = Input(
                **{name: given[name] for name in given if name in Input.model_fields},
                slots=[slot for slot in body.slots if not isinstance(slot, str)],
            )
            return jobs[job_uid]

        @api.post(path + "/inputs/{input_name}/connections", summary="jobs.connect")
        def connect(project_uid: str, job_uid: str, input_name: str, source_output_name: str,
                    source_job_uid: str) -> Job:  # fmt: skip
            _refuse(jobs[job_uid].status != "building", "is not being built")
            joined = Connection(job_uid=source_job_uid, output=source_output_name)
            jobs[job_uid].spec.inputs.root[input_name].connections.append(joined)
            return jobs[job_uid]

        @api.put(path + "/outputs/{output_name}", summary="jobs.add_external_output")
        def add_output(project_uid: str, job_uid: str, output_name: str, body: OutputSpec) -> Job:
            job = jobs[job_uid]
            _refuse(job.status not in ("building", *_ACTIVE), "is over")
            _refuse(body.passthrough not in (None, *job.spec.inputs.root), "has no such input")
            given = body.model_dump(exclude={"slots"})
            job.spec.outputs.root[output_name] = Output(
                **{name: given[name] for name in given if name in Output.model_fields},
                slots=[slot for slot in body.slots if not isinstance(slot, str)],
            )
            return job

        @api.post(path + "/status/running", summary="jobs.mark_running")
        def mark_running(project_uid: str, job_uid: str, status: str = "running") -> Job:
            for name, joined in jobs[job_uid].spec.inputs.root.items():
                prefixes = self.input_of(job_uid, name).prefixes()
                lacking = {slot.name for slot in joined.slots} - set(prefixes)
                _refuse(bool(lacking), f"lacks {lacking}")
            return self._now(job_uid, status)

        @api.post(path + "/status/completed", summary="jobs.mark_completed")
        def mark_completed(project_uid: str, job_uid: str) -> Job:
            return self._now(job_uid, "completed")

        @api.post(path + "/status/failed", summary="jobs.mark_failed")
        def mark_failed(project_uid: str, job_uid: str, error: str) -> Job:
            self.logged.append(error)
            return self._now(job_uid, "failed")

        @api.get(path + "/directory", summary="jobs.get_directory")
        def get_directory(project_uid: str, job_uid: str) -> str:
            return str(self.project / job_uid)

        @api.post(path + "/events", summary="jobs.add_event_log")
        def add_event_log(
            project_uid: str,
            job_uid: str,
            text: Annotated[str, Body()],
            level: Annotated[str, Query(alias="type")] = "text",
        ) -> TextEvent:
            self.logged.append(text)
            return TextEvent(project_uid=project_uid, job_uid=job_uid, type=level, text=text)

        @api.get(
            path + "/inputs/{input_name}/data",
            summary="jobs.load_input",
            response_class=Response,
            responses={200: Dataset.api_schema()},
        )
        def load_input(
            project_uid: str, job_uid: str, input_name: str, slots: str = "default"
        ) -> Response:
            body = b"".join(self.input_of(job_uid, input_name).stream())
            return Response(body, media_type=Dataset.media_type)

        @api.put(
            path + "/outputs/{output_name}/data",
            summary="jobs.save_output",
            openapi_extra={"requestBody": {**Dataset.api_schema(), "required": True}},
        )
        async def save_output(
            project_uid: str, job_uid: str, output_name: str, request: Request, version: int = 0
        ) -> Job:
            job, data = jobs[job_uid], Dataset.load(BytesIO(await request.body()))
            output = job.spec.outputs.root[output_name]
            _refuse(job.status not in _ACTIVE, "is not running")
            _refuse({slot.name for slot in output.slots} != set(data.prefixes()), "has other slots")
            if output.passthrough:
                known = self.input_of(job_uid, output.passthrough)["uid"]
                _refuse(not np.isin(data["uid"], known).all(), "has rows of its own")
            self.saved[job_uid, output_name] = data
            return job

        whole = FastAPI()
        whole.mount(SUFFIX, api)
        return whole

    def _now(self, job: str, status: str) -> Job:
        self.jobs[job] = self.jobs[job].model_copy(update={"status": status})
        return self.jobs[job]

    @contextmanager
    def running(self) -> Iterator[Server]:
        """Serve on a free port of this machine."""
        config = uvicorn.Config(self.app(), host="127.0.0.1", port=0, log_level="warning")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            thread.join(0.05)
        port = server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        try:
            yield self
        finally:
            server.should_exit = True
            thread.join()


def _refuse(wrong: bool, why: str) -> None:
    if wrong:
        raise HTTPException(422, f"the job {why}")
