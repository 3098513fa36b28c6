"""The tab "Hessian" of TensorBoard, found by it through the entry point of this package.

Everything is read through TensorBoard's own data provider, and every file that is served is named
here: an address cannot reach anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tensorboard import plugin_util
from tensorboard.backend import http_util
from tensorboard.plugins import base_plugin
from werkzeug import Request, Response

from lightning_hessrank.dashboard.tab.assets import ENTRY, SCRIPTS, STYLE, plotly_script, static
from lightning_hessrank.dashboard.tab.provider import Reader
from lightning_hessrank.dashboard.tab.records import PLUGIN, dumps

_TYPES = {".js": "application/javascript", ".css": "text/css"}
#: Measurements that TensorBoard keeps of a run, unless the user says otherwise: its default for
#: plugins that it does not know is ten.
KEPT = 1000

Application = Callable[..., Any]


class HessianPlugin(base_plugin.TBPlugin):  # type: ignore[misc]
    """Answers the browser.

    Args:
        context: what TensorBoard gives to every plugin.
    """

    plugin_name = PLUGIN

    def __init__(self, context: base_plugin.TBContext) -> None:
        super().__init__(context)
        self._provider = context.data_provider

    def get_plugin_apps(self) -> dict[str, Application]:
        """Return what answers each address below ``/data/plugin/hessian``."""
        return {
            **{f"/{name}": _serve(name) for name in (ENTRY, *SCRIPTS, STYLE)},
            "/plotly.min.js": _application(_plotly),
            "/scripts": _application(lambda _: _json(list(SCRIPTS))),
            "/runs": _application(lambda request: _json(self._reader(request).overview())),
            "/details": _application(self._details),
            "/report.html": _application(self._report),
        }

    def is_active(self) -> bool:
        """Whether the tab is offered at once: always, for it says what to do where it is empty."""
        return True

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """Return what the tab is called, and where its page begins."""
        return base_plugin.FrontendMetadata(es_module_path=f"/{ENTRY}", tab_name="Hessian")

    def _details(self, request: Request) -> Response:
        run, name = (request.args.get(key, "") for key in ("run", "name"))
        return _json(self._reader(request).details(run, name))

    def _report(self, request: Request) -> Response:
        from lightning_hessrank.dashboard.tab.page import report_of

        content = report_of(self._reader(request)).encode()
        headers = [("Content-Disposition", 'attachment; filename="hessian.html"')]
        return _respond(content, "text/html; charset=utf-8", headers=headers)

    def _reader(self, request: Request) -> Reader:
        environ = request.environ
        return Reader(
            self._provider, plugin_util.context(environ), plugin_util.experiment_id(environ)
        )


class HessianLoader(base_plugin.TBLoader):  # type: ignore[misc]
    """What TensorBoard finds at the entry point."""

    def fix_flags(self, flags: Any) -> None:
        """Let TensorBoard keep more measurements than it would of a plugin unknown to it."""
        flags.samples_per_plugin = {PLUGIN: KEPT, **(flags.samples_per_plugin or {})}

    def load(self, context: base_plugin.TBContext) -> HessianPlugin:
        """Return the plugin."""
        return HessianPlugin(context)


def _serve(name: str) -> Application:
    kind = _TYPES[name[name.rindex(".") :]]
    return _application(
        lambda request: http_util.Respond(request, static(name), f"{kind}; charset=utf-8")
    )


def _plotly(request: Request) -> Response:
    return http_util.Respond(
        request, plotly_script(), "application/javascript; charset=utf-8", expires=3600
    )


def _application(answer: Callable[[Request], Response]) -> Application:
    """Make an answer to a request a WSGI application; what goes wrong is said as JSON."""

    @Request.application
    def application(request: Request) -> Response:
        try:
            return answer(request)
        except Exception as error:  # the tab says it, and TensorBoard goes on
            return _json({"error": f"{type(error).__name__}: {error}"}, status=500)

    return application


def _json(value: Any, status: int = 200) -> Response:
    return _respond(dumps(value).encode(), "application/json", status=status)


def _respond(
    content: bytes,
    content_type: str,
    *,
    status: int = 200,
    headers: Sequence[tuple[str, str]] = (),
) -> Response:
    response = Response(content, status=status, content_type=content_type, headers=[*headers])
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Cache-Control"] = "no-cache, must-revalidate"
    return response
