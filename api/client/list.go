package client

import (
	"context"
	"iter"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
)

// pageSize is the number of items asked for at once; migrations carry their whole
// story, so a page of them can be large.
const pageSize = 200

// VMs gives every VM, or those that a host owns, page by page. An error is the
// last item.
func (c *Client) VMs(ctx context.Context, host string) iter.Seq2[*godwitv1.VM, error] {
	return paged(func(page *godwitv1.PageRequest) ([]*godwitv1.VM, string, error) {
		response, err := c.VM.List(ctx, &godwitv1.ListVMsRequest{Page: page, Host: host})
		return response.GetVms(), response.GetNextToken(), err
	})
}

// Hosts gives every host, page by page. An error is the last item.
func (c *Client) Hosts(ctx context.Context) iter.Seq2[*godwitv1.Host, error] {
	return paged(func(page *godwitv1.PageRequest) ([]*godwitv1.Host, string, error) {
		response, err := c.Host.List(ctx, &godwitv1.ListHostsRequest{Page: page})
		return response.GetHosts(), response.GetNextToken(), err
	})
}

// Networks gives every network, page by page. An error is the last item.
func (c *Client) Networks(ctx context.Context) iter.Seq2[*godwitv1.Network, error] {
	return paged(func(page *godwitv1.PageRequest) ([]*godwitv1.Network, string, error) {
		response, err := c.Network.List(ctx, &godwitv1.ListNetworksRequest{Page: page})
		return response.GetNetworks(), response.GetNextToken(), err
	})
}

// Migrations gives every migration, or those of one VM, the newest first and
// page by page. An error is the last item.
func (c *Client) Migrations(ctx context.Context, vm string) iter.Seq2[*godwitv1.Migration, error] {
	return paged(func(page *godwitv1.PageRequest) ([]*godwitv1.Migration, string, error) {
		response, err := c.Migration.List(ctx, &godwitv1.ListMigrationsRequest{Page: page, Vm: vm})
		return response.GetMigrations(), response.GetNextToken(), err
	})
}

// MigrationHistory gives the migrations that the request asks for, whose page
// it sets. An error is the last item.
func (c *Client) MigrationHistory(ctx context.Context, request *godwitv1.ListMigrationsRequest) iter.Seq2[*godwitv1.Migration, error] {
	return paged(func(page *godwitv1.PageRequest) ([]*godwitv1.Migration, string, error) {
		request.Page = page
		response, err := c.Migration.List(ctx, request)
		return response.GetMigrations(), response.GetNextToken(), err
	})
}

func paged[T any](fetch func(*godwitv1.PageRequest) ([]T, string, error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		token := ""
		for {
			items, next, err := fetch(&godwitv1.PageRequest{Size: pageSize, Token: token})
			if err != nil {
				var none T
				yield(none, err)
				return
			}
			for _, item := range items {
				if !yield(item, nil) {
					return
				}
			}
			if next == "" {
				return
			}
			token = next
		}
	}
}
