package server

import (
	"context"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/store"
)

const defaultPage = 100

// pageOf reads which page is asked for. A token is the name of the last item
// of the page before.
func pageOf(request *godwitv1.PageRequest) store.Page {
	limit := int(request.GetSize())
	if limit <= 0 {
		limit = defaultPage
	}
	return store.Page{After: request.GetToken(), Limit: min(limit, store.MaxPage)}
}

// readPage reads the page of a table that a request asks for, leaving out the
// entries that keep refuses (nil keeps all). token is for the next page.
func readPage[T any](ctx context.Context, table store.Table[T], request *godwitv1.PageRequest, keep func(T) bool) (entries []store.Entry[T], token string, err error) {
	page := pageOf(request)
	size := page.Limit
	for {
		page.Limit = size - len(entries)
		part, next, _, err := table.List(ctx, page)
		if err != nil {
			return nil, "", err
		}
		for _, entry := range part {
			if keep == nil || keep(entry.Value) {
				entries = append(entries, entry)
			}
		}
		if next == "" || len(entries) == size {
			return entries, next, nil
		}
		page.After = next
	}
}
