package cli

import (
	"context"
	"fmt"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
)

// imageWait says what keeps a target from running that has the right to, "" if nothing
// does.
func (a *App) imageWait(m *godwitv1.Migration) string {
	wait := m.GetImageWait()
	if wait == nil {
		return ""
	}
	return fmt.Sprintf("the lock on the image of disk %s, which %s's instance has as far as can be told, since %s",
		wait.GetDisk(), wait.GetHolder(), a.moment(wait.GetSince()))
}

// imageWaitOf is the same of a VM. A migration that can't be read tells nothing.
func (a *App) imageWaitOf(ctx context.Context, c *client.Client, vm *godwitv1.VM) string {
	if vm.GetMigration() == "" {
		return ""
	}
	response, err := c.Migration.Get(ctx, &godwitv1.GetMigrationRequest{Id: vm.GetMigration()})
	if err != nil {
		return ""
	}
	return a.imageWait(response.GetMigration())
}
