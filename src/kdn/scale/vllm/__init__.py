"""kdn's store inside vLLM: `KdnConnector`, loaded with `kv_connector_module_path`.

    vllm serve MODEL --kv-transfer-config "$(kdn scale vllm-args --folder DIR --json)"

Only the files of this folder import vLLM; they translate and decide nothing.  A version of vLLM that they
were not tried with is refused.
"""

from __future__ import annotations

from kdn.scale.vllm.version import check_version, installed_version

check_version(installed_version())  # before what another version may not have is imported

from kdn.scale.vllm.connector import KdnConnector  # noqa: E402

__all__ = ["KdnConnector"]
