// Command godwit moves running virtual machines between hosts.
package main

import "os"

func main() { os.Exit(0) }
