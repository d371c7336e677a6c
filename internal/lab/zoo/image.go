package zoo

import (
	"context"
	"os"
	"path/filepath"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab/image"
)

// Build makes in dir the image that Redis and Compile need, of what scripts/setup zoo has
// put in the cache folder. If it has not, the error is fleet.NotFound.
func Build(ctx context.Context, cache, dir string) (image.Image, error) {
	root := filepath.Join(cache, "zoo", "root")
	if _, err := os.Stat(root); err != nil {
		return image.Image{}, &fleet.Error{
			Code: fleet.NotFound, Op: "build", Subject: "the zoo's image", Err: err, Hint: "run scripts/setup zoo",
		}
	}
	return image.BuildFrom(ctx, cache, dir, root,
		[]string{"/usr/bin/redis-server", "/usr/bin/tcc"},
		[]string{"/usr/include", "/usr/lib/x86_64-linux-gnu/tcc"})
}
