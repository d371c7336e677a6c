package reconcile

import (
	"context"
	"maps"
	"slices"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/store"
	"godwit.dev/godwit/internal/wire"
)

// dispatch sends effects to their hosts. One that can't be sent now, because
// its host has no session or a record can't be read, is sent when the host
// connects again. A server that does not lead leaves it to the one that does,
// which sees the record change.
func (r *Reconciler) dispatch(m *migration.Migration, effects []migration.Effect) {
	if !r.leads() {
		return
	}
	for _, effect := range effects {
		command, err := r.command(m, effect)
		if err == nil {
			err = r.Hosts.Send(effect.Host, command)
		}
		if err != nil {
			r.Log.Warn("an effect waits", "migration", m.ID, "effect", effect.Kind, "host", effect.Host, "error", err)
		}
	}
}

// command spells an effect for its host.
func (r *Reconciler) command(m *migration.Migration, effect migration.Effect) (*godwitv1.Command, error) {
	command := &godwitv1.Command{Subject: string(m.ID), Epoch: uint64(m.Epoch), Sequence: effect.Sequence, Uid: string(m.UID)}
	vm := string(m.VM)
	switch effect.Kind {
	case migration.PrepareTarget:
		return command, r.prepareTarget(m, command)
	case migration.StartCopy:
		return command, r.startCopy(m, command)
	case migration.ResumeSource:
		command.Op = &godwitv1.Command_ResumeSource{ResumeSource: &godwitv1.ResumeSource{Vm: vm, NewEpoch: uint64(effect.Epoch)}}
	case migration.ReleaseTarget:
		source, err := r.host(m.Source)
		if err != nil {
			return nil, err
		}
		command.Op = &godwitv1.Command_ReleaseTarget{ReleaseTarget: &godwitv1.ReleaseTarget{
			Vm: vm, SourceAddress: source.Address.String(), SourcePeerPort: uint32(source.PeerPort), ReturnFrames: effect.ReturnFrames,
		}}
	case migration.RunTarget:
		command.Op = &godwitv1.Command_RunTarget{RunTarget: &godwitv1.RunTarget{Vm: vm, VolumeKey: r.volumeKey(m)}}
	case migration.RetireSource:
		command.Op = &godwitv1.Command_RetireSource{RetireSource: &godwitv1.RetireSource{Vm: vm}}
	case migration.ReleaseSource:
		command.Op = &godwitv1.Command_ReleaseSource{ReleaseSource: &godwitv1.ReleaseSource{Vm: vm}}
	case migration.FinishTarget:
		command.Op = &godwitv1.Command_FinishTarget{FinishTarget: &godwitv1.FinishTarget{Vm: vm}}
	}
	return command, nil
}

func (r *Reconciler) prepareTarget(m *migration.Migration, command *godwitv1.Command) error {
	ctx := context.Background() // the store bounds each request
	vm, err := r.Tables.VMs.Get(ctx, string(m.VM))
	if err != nil {
		return err
	}
	networks, err := r.portNetworks(ctx, m, vm.Value)
	if err != nil {
		return err
	}
	source, err := r.host(m.Source)
	if err != nil {
		return err
	}
	command.Op = &godwitv1.Command_PrepareTarget{PrepareTarget: &godwitv1.PrepareTarget{
		Instance: &godwitv1.Instance{
			Vm: string(m.VM), Uid: string(m.UID), Epoch: uint64(m.Epoch + 1),
			Spec: wire.EncodeSpec(vm.Value.Spec), Networks: networks,
		},
		Source: string(m.Source), SourceAddress: source.Address.String(), SourcePeerPort: uint32(source.PeerPort),
		Connections: uint32(m.Connections),
	}}
	return nil
}

func (r *Reconciler) startCopy(m *migration.Migration, command *godwitv1.Command) error {
	target, err := r.host(m.Target)
	if err != nil {
		return err
	}
	var tunnels []*godwitv1.PortNetwork
	for _, port := range slices.Sorted(maps.Keys(m.Tunnels)) {
		tunnels = append(tunnels, &godwitv1.PortNetwork{Port: port, Tunnel: uint32(m.Tunnels[port])})
	}
	throttle := m.Foreseen.Throttle
	command.Op = &godwitv1.Command_StartCopy{StartCopy: &godwitv1.StartCopy{
		Vm: string(m.VM), Target: string(m.Target), TargetAddress: target.Address.String(), TargetPort: uint32(m.Port),
		Networks: tunnels, BandwidthMax: uint64(m.Policy.BandwidthMax), BlackoutMaxMs: m.Policy.BlackoutMax.Milliseconds(),
		Connections: uint32(m.Connections), TargetPeerPort: uint32(target.PeerPort), SwitchMaxMs: m.Policy.SwitchMax.Milliseconds(),
		DiskPort:        uint32(m.DiskPort),
		ThrottleInitial: int32(throttle.Initial), ThrottleStep: int32(throttle.Step), ThrottleMax: int32(throttle.Max),
	}}
	return nil
}

func (r *Reconciler) portNetworks(ctx context.Context, m *migration.Migration, vm fleet.VM) ([]*godwitv1.PortNetwork, error) {
	networks, err := PortNetworks(ctx, r.Tables.Networks, vm.Spec)
	if err != nil {
		return nil, err
	}
	for _, network := range networks {
		network.Tunnel = uint32(m.Tunnels[network.Port])
	}
	return networks, nil
}

// PortNetworks gives the network of each port of a spec, without tunnels.
func PortNetworks(ctx context.Context, networks store.Table[fleet.Network], spec fleet.VMSpec) ([]*godwitv1.PortNetwork, error) {
	var ports []*godwitv1.PortNetwork
	for _, port := range spec.Ports {
		network, err := networks.Get(ctx, string(port.Network))
		if err != nil {
			return nil, err
		}
		ports = append(ports, &godwitv1.PortNetwork{
			Port: port.Name, Vni: network.Value.VNI, Mtu: int32(network.Value.MTU),
			Bridge: network.Value.Bridge, Vlan: uint32(network.Value.VLAN),
		})
	}
	return ports, nil
}

func (r *Reconciler) host(name fleet.HostName) (fleet.Host, error) {
	host, err := r.Tables.Hosts.Get(context.Background(), string(name))
	return host.Value, err
}

// volumeKey gives what goes along with the right to run.
func (r *Reconciler) volumeKey(m *migration.Migration) []byte {
	if r.Leases == nil {
		return nil
	}
	return r.Leases.Key(m.UID, m.Epoch+1, m.ID)
}
