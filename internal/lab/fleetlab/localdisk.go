package fleetlab

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// LocalImages gives the images of raw local disks on a host that have not become old,
// of all VMs, in their order.
func (f *Fleet) LocalImages(host string) (images []string, err error) {
	all, err := filepath.Glob(filepath.Join(f.AgentDir(host), "disks", "*", "*", "*.raw"))
	if err != nil {
		return nil, err
	}
	for _, image := range all {
		mark, err := os.ReadFile(filepath.Join(filepath.Dir(image), "copy.json"))
		if err == nil && !strings.Contains(string(mark), `"old"`) {
			images = append(images, image)
		}
	}
	slices.Sort(images)
	return images, nil
}
