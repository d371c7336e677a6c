package fleetlab

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
)

// Twin starts a second agent of a host, from a copy of the first one's folder,
// where the first server runs. The caller ends it.
func (f *Fleet) Twin(ctx context.Context, host string) (*Process, error) {
	dir := f.AgentDir(host) + "-twin"
	if text, err := exec.CommandContext(ctx, "cp", "-a", f.AgentDir(host), dir).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("copy the agent's folder: %w: %s", err, text)
	}
	home := f.Lab.Host(controlName(0))
	p := &Process{
		name: "the twin of " + host, home: home.Namespace, log: filepath.Join(f.logDir(), host+"-twin.log"),
		args: []string{
			f.config.Binary, "agent", "--server", f.serverURLs(), "--name", host, "--address", home.Addr.String(), "--dir", dir,
			"--cpus", hostCPUs, "--memory", hostMemory,
		},
	}
	return p, p.Start()
}
