package interop

import (
	_ "tailscale.com/derp/derphttp"
	_ "tailscale.com/net/netcheck"
	_ "tailscale.com/net/netmon"
)
