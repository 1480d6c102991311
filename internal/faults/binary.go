package faults

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
)

// The worker under test obeys failpoints; the other has also lost the conditions on epoch and offset, and must be found guilty.
var (
	fenced   = build("failpoints")
	unfenced = build("failpoints,unfenced")
)

// build builds the program once for all tests of the process, beside the tests' own binary, whose folder `go test` removes.
func build(tags string) func() (string, error) {
	return sync.OnceValues(func() (string, error) {
		tests, err := os.Executable()
		if err != nil {
			return "", fmt.Errorf("find the tests' folder: %w", err)
		}
		path := filepath.Join(filepath.Dir(tests), "auditsink-"+tags)
		cmd := exec.CommandContext(context.Background(), "go", "build", "-tags", tags, "-o", path, "auditsink/cmd/auditsink")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build the program with tags %s: %w\n%s", tags, err, out)
		}
		return path, nil
	})
}
