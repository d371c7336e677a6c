package fleetlab

import (
	"context"
	"net/netip"
	"path/filepath"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

// VolumeServer is a volume server of the fleet.
type VolumeServer struct {
	*Process
	Name string
	Addr netip.Addr // where hosts reach it
	API  *client.VolumeServer

	dir string
}

// startVolumeServer enrols a volume server, and waits until the fleet's server knows
// where it is.
func (f *Fleet) startVolumeServer(ctx context.Context, name string) error {
	token, err := f.API.Host.CreateToken(ctx, &godwitv1.CreateTokenRequest{Host: name, Kind: "volume"})
	if err != nil {
		return err
	}
	home := f.Lab.Host(name)
	v := &VolumeServer{Name: name, Addr: home.Addr, dir: filepath.Join(f.Lab.Dir(), "volume-"+name)}
	run := filepath.Join(f.Lab.Dir(), "r-"+name)
	v.Process = &Process{
		name: "volume server " + name, home: home.Namespace, log: filepath.Join(f.logDir(), "volume-"+name+".log"),
		env: []string{"GODWIT_TOKEN=" + token.GetToken()},
		args: []string{f.config.Binary, "volume", "serve", "--server", f.serverURLs(), "--name", name,
			"--address", home.Addr.String(), "--dir", v.dir, "--run", run},
	}
	if err := v.Start(); err != nil {
		return err
	}
	if v.API, err = client.DialVolumeServer(client.Config{Server: "unix://" + filepath.Join(run, "volume.sock")}); err != nil {
		return err
	}
	f.volumes[name] = v
	return f.await(ctx, "volume server "+name+" to be known", func(ctx context.Context) (bool, error) {
		list, err := f.API.VolumeServers.List(ctx, &godwitv1.ListVolumeServersRequest{})
		for _, known := range list.GetServers() {
			if known.GetName() == name {
				return true, err
			}
		}
		return false, err
	}, v.Process)
}

// Disk makes a volume, and gives the disk that it is.
func (v *VolumeServer) Disk(ctx context.Context, volume string, size fleet.Bytes) (*godwitv1.Disk, error) {
	_, err := v.API.Create(ctx, &godwitv1.CreateVolumeRequest{Name: volume, SizeBytes: uint64(size)})
	return &godwitv1.Disk{Name: volume, Kind: "volume", Server: v.Name, Volume: volume}, err
}

// Path is the file of a volume's bytes.
func (v *VolumeServer) Path(volume string) string {
	return filepath.Join(v.dir, "volumes", volume, "data")
}
