"""The rendezvous of a job with one node: nobody to wait for, and no network or name service to depend on."""

from torch.distributed import HashStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

from vit.run.loopback import find_loopback


class OneNodeRendezvous(RendezvousHandler):
    """The ranks of one attempt meet at a store of this process, on the loopback interface; a single rank needs none.

    torch's own rendezvous tells the ranks this machine's name, which does not resolve on many laptops and containers.
    """

    def __init__(self, run_id: str, ranks: int) -> None:
        """Raises UserError if several ranks cannot communicate."""
        self._run_id = run_id
        self._address, self._port = "localhost", 0
        if ranks > 1:
            self._address = find_loopback().address
            self._server = TCPStore(self._address, 0, is_master=True, wait_for_workers=False)
            self._port = self._server.port

    def next_rendezvous(self) -> RendezvousInfo:
        return RendezvousInfo(HashStore(), 0, 1, RendezvousStoreInfo(self._address, self._port))

    @property
    def use_agent_store(self) -> bool:
        """Tells the ranks that the store is not theirs to host."""
        return True

    def get_backend(self) -> str:
        return "one-node"

    def get_run_id(self) -> str:
        return self._run_id

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        pass

    def num_nodes_waiting(self) -> int:
        return 0

    def shutdown(self) -> bool:
        return True
