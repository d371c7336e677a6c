// Command godwit moves running virtual machines between hosts.
package main

import (
	"context"
	"os"

	"godwit.dev/godwit/internal/cli"
)

func main() {
	os.Exit(cli.Main(context.Background(), cli.OS(), os.Args[1:]))
}
