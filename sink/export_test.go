package sink

import (
	"testing"
	"time"
)

// SetAttemptTimeout shortens how long one attempt may take, for the time of a test.
func SetAttemptTimeout(t *testing.T, d time.Duration) {
	was := attemptTimeout
	attemptTimeout = d
	t.Cleanup(func() { attemptTimeout = was })
}
