// Command mkimage builds the lab's guest image in the source tree's cache
// folder, from the kernel package that scripts/setup put there.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab/image"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		if hint := fleet.HintOf(err); hint != "" {
			fmt.Fprintln(os.Stderr, "hint:", hint)
		}
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	cache, err := image.CacheDir()
	if err != nil {
		return err
	}
	img, err := image.Build(ctx, cache)
	if err != nil {
		return err
	}
	fmt.Printf("guest image: %s, %s\n", img.Kernel, img.Initrd)
	return nil
}
