"""Import this first, and the bridge can be imported without Home Assistant: for processes of which there are many.

The package above bridge/ is the integration, which imports all of Home Assistant: 40 MB and two seconds that are not
the bridge's. Its name alone is enough to import what lies below it.
"""

from pathlib import Path
import sys
from types import ModuleType

_INTEGRATION = ModuleType("custom_components.quic_bridge")
_INTEGRATION.__path__ = [str(Path(__file__).parents[2] / "custom_components" / "quic_bridge")]
sys.modules.setdefault(_INTEGRATION.__name__, _INTEGRATION)
