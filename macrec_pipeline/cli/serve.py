"""The command that serves a registered model over HTTP: `macrec serve`."""

from typing import Annotated

import typer

from macrec_pipeline.cli.completion import complete_dataset
from macrec_pipeline.cli.options import DEFAULT_HOME, HomeOption
from macrec_pipeline.terminal import console, quieten_libraries


def serve(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DATASET",
            autocompletion=complete_dataset,
            help="Data set whose registered model, macrec-DATASET, to serve.",
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="An alias, which the service follows, or the number of a version, which it keeps.",
        ),
    ] = "champion",
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Address that the service listens on.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="PORT", min=1, max=65535, help="Port that the service listens on.")
    ] = 8080,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Change a setting of the service, as in max_k=100. Repeat for more; docs/serving.md lists them.",
        ),
    ] = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Serve the champion over HTTP, and take over each new champion without a restart.

    Examples:

    - `macrec serve demo`
    - `curl http://127.0.0.1:8080/recommend -H 'Content-Type: application/json' -d '{"history": ["P0001"], "k": 3}'`
    """
    quieten_libraries()
    from macrec_pipeline.serving.server import serve as run_service
    from macrec_pipeline.serving.settings import parse_settings
    from macrec_pipeline.tracking import model_uri

    parsed, uri = parse_settings(settings or []), model_uri(dataset, model)
    out = console()
    out.print(
        f"Serving {uri} on http://{host}:{port}. Its API is described at http://{host}:{port}/docs.", highlight=False
    )
    out.print("/ready answers once the model is loaded. Press Ctrl-C to stop.", highlight=False)
    run_service(uri, home.folder, parsed, host=host, port=port)
