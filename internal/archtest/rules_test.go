package archtest

// module is the path that the tables leave out.
const module = "godwit.dev/godwit/"

// imports says which packages of this module each package may import. The
// longest entry that begins a package's path counts for it, and an import is
// allowed by any entry that begins its path. A package without an entry is an
// error: it has to find its place here first. Test files are free.
var imports = map[string][]string{
	// The pure core: nouns, and functions of them.
	"internal/fleet":     {},
	"internal/migration": {"internal/fleet", "internal/predict"},
	"internal/explore":   {"internal/fleet", "internal/migration"},
	"internal/predict":   {"internal/fleet"},
	"internal/placement": {"internal/fleet"},
	"internal/campaign":  {"internal/fleet", "internal/predict", "internal/placement"},

	// Adapters: one outside technology each.
	"internal/qmp":     {"internal/fleet", "internal/qmp"},
	"internal/qemu":    {"internal/durable", "internal/fleet", "internal/qmp"},
	"internal/network": {"internal/fleet"},
	"internal/volume":  {"internal/durable", "internal/fleet"},
	"internal/store":   {"internal/fleet", "internal/migration"},
	"internal/pki":     {"internal/durable", "internal/fleet"},

	"internal/localdisk":  {"internal/durable", "internal/fleet"},
	"internal/pagesample": {"internal/fleet"},

	// Of files and processes, whatever they are for.
	"internal/durable":   {},
	"internal/imagelock": {},
	"internal/supervise": {},

	// What crosses the wire.
	"api/godwit/v1": {"api/godwit/v1"},
	"internal/wire": {"api/godwit/v1", "internal/fleet", "internal/migration", "internal/predict", "internal/placement"},
	"api/client":    {"api", "internal/fleet", "internal/wire"},

	// What an agent promises, for the agent and for the simulator.
	"internal/pledge": {"api/godwit/v1", "internal/fleet"},
	// What carries migrations on, for the server and for the simulator.
	"internal/reconcile": {"api/godwit/v1", "internal/fleet", "internal/migration", "internal/predict", "internal/store", "internal/wire"},

	// What keeps the life of VMs, for the server and for the simulator.
	"internal/lifecycle": {"api/godwit/v1", "internal/fleet", "internal/migration", "internal/store", "internal/wire", "internal/reconcile"},

	// What gives hosts the leases of their VMs' volumes, for the server.
	"internal/leases": {"api/godwit/v1", "internal/fleet", "internal/migration", "internal/store", "internal/wire"},

	// The long-running programs.
	"internal/agent": {"api", "internal/durable", "internal/fleet", "internal/migration", "internal/wire",
		"internal/imagelock", "internal/qmp", "internal/qemu", "internal/network", "internal/volume", "internal/localdisk", "internal/pagesample", "internal/pledge", "internal/pki"},
	"internal/server": {"api", "internal/durable", "internal/fleet", "internal/migration", "internal/predict", "internal/placement",
		"internal/campaign", "internal/wire", "internal/store", "internal/reconcile", "internal/lifecycle", "internal/leases", "internal/pki"},
	"internal/volumeserver": {"api", "internal/fleet", "internal/wire", "internal/volume", "internal/pki"},

	// Around them.
	"internal/lab":          {"internal/durable", "internal/fleet", "internal/lab"},
	"internal/lab/guest":    {"internal/lab/load", "internal/lab/pid1", "internal/lab/witness"},
	"internal/lab/load":     {"internal/lab/witness"},
	"internal/lab/pid1":     {},
	"internal/lab/witness":  {},
	"internal/lab/probe":    {"internal/lab/witness"},
	"internal/lab/zoo":      {"internal/fleet", "internal/lab/image", "internal/lab/witness"},
	"internal/lab/etcd":     {}, // a program
	"internal/lab/etcdtls":  {},
	"internal/lab/fleetlab": {"api", "internal/fleet", "internal/lab"}, // a whole fleet in a lab
	"internal/demo":         {"api", "internal/fleet", "internal/lab"},
	"internal/sim":          {"api/godwit/v1", "internal"},
	"internal/web":          {"internal/fleet"},
	"internal/explain":      {"api/godwit/v1", "internal/fleet", "internal/migration"},
	"internal/cli":          {"api", "internal"}, // where everything is wired together
	"internal/archtest":     {},
	"cmd/godwit":            {"internal/cli"},
	"test":                  {"api", "internal", "test"},
}

// pure packages import nothing from outside the standard library, nor what
// bannedInPure names, and none of bannedCalls.
var pure = []string{
	"internal/fleet", "internal/migration", "internal/explore", "internal/predict", "internal/placement", "internal/campaign",
	"internal/lab/load",
}

// bannedInPure begins the paths of what a pure package may not import. The
// addresses of net/netip are values.
var bannedInPure = []string{
	"os", "net", "log", "syscall", "runtime", "unsafe", "sync", "context", "io/fs", "io/ioutil", "path/filepath",
	"math/rand", "crypto/rand", "embed", "database", "testing",
}

var allowedInPure = []string{"net/netip"}

// bannedCalls are functions of a pure package's imports that look at the
// clock or wait for it.
var bannedCalls = map[string][]string{
	"time": {"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"},
}

// simulated packages run in virtual time: none of their files may call what
// bannedInSimulated names, except those of realTime. The ticker of the reconciler's
// Run is allowed: the simulator calls Redispatch itself.
var (
	simulated         = []string{"internal/reconcile", "internal/lifecycle", "internal/sim", "internal/sim/check"}
	realTime          = []string{"internal/reconcile/runtime.go", "internal/lifecycle/runtime.go", "internal/sim/many.go"}
	bannedInSimulated = map[string][]string{
		"time":    {"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer"},
		"context": {"WithTimeout", "WithTimeoutCause", "WithDeadline", "WithDeadlineCause"},
	}
)

// owners says which packages alone may import an outside technology, test
// files included.
var owners = map[string][]string{
	"go.etcd.io/":                {"internal/store", "internal/lab/etcd"},
	"github.com/cilium/ebpf":     {"internal/network", "internal/lab"},
	"github.com/vishvananda/":    {"internal/network", "internal/lab"},
	"github.com/spf13/cobra":     {"internal/cli"},
	"github.com/goccy/go-yaml":   {"internal/cli"},
	"connectrpc.com/connect":     {"api", "internal/wire", "internal/agent", "internal/server", "internal/volumeserver", "internal/cli", "test"},
	"google.golang.org/protobuf": {"api", "internal/wire", "internal/agent", "internal/server", "internal/reconcile", "internal/explain", "internal/cli", "test"},
	"google.golang.org/grpc":     {"internal/store"}, // etcd's errors
	"github.com/anishathalye/":   {"internal/sim/check"},
	"gonum.org/v1/plot":          {"test", "internal/cli"},
	"github.com/klauspost/":      {"internal/pagesample"},
	"github.com/prometheus/":     {"internal/agent", "internal/server", "internal/cli"},
}

// maxLines is how long a file may be that people write.
const maxLines = 500
