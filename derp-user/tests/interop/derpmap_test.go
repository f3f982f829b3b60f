package interop

import (
	"bytes"
	"encoding/json"
	"os"
	"reflect"
	"testing"

	"github.com/tailscale/hujson"
	"go.yaml.in/yaml/v2"
	"tailscale.com/derp/derphttp"
	"tailscale.com/net/netmon"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// The maps that `derpd derpmap` prints are read as Tailscale's policy files and Headscale's `derp.paths`
// are, mean the same, and lead a region client to the relay.
func TestPrintedMaps(t *testing.T) {
	var alone tailcfg.DERPMap
	strictly(t, []byte(os.Getenv("RELAY_MAP_JSON")), &alone)

	var policy struct {
		DERPMap *tailcfg.DERPMap `json:"derpMap"`
	}
	standard, err := hujson.Standardize([]byte(os.Getenv("RELAY_MAP_TAILSCALE")))
	if err != nil {
		t.Fatal(err)
	}
	strictly(t, standard, &policy)

	var headscale tailcfg.DERPMap
	if err := yaml.UnmarshalStrict([]byte(os.Getenv("RELAY_MAP_HEADSCALE")), &headscale); err != nil {
		t.Fatal(err)
	}
	for name, other := range map[string]*tailcfg.DERPMap{"tailscale": policy.DERPMap, "headscale": &headscale} {
		if !reflect.DeepEqual(&alone, other) {
			t.Errorf("%s: %+v, alone: %+v", name, other.Regions[900], alone.Regions[900])
		}
	}

	region := alone.Regions[900]
	if region == nil || region.RegionID != 900 || region.RegionName != "\u00a7 \"test\": #1" {
		t.Fatalf("no region 900: %+v", region)
	}
	connected := func() *derphttp.Client {
		get := func() *tailcfg.DERPRegion { return region }
		return login(t, derphttp.NewRegionClient(key.NewNode(), quiet, netmon.NewStatic(), get))
	}
	exchange(t, connected(), connected())
}

// strictly reads JSON in which every field is known.
func strictly(t *testing.T, text []byte, value any) {
	t.Helper()
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(value); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
}
