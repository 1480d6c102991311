package sink

import (
	"testing"
	"time"
)

// SetTurnLimit changes how long a turn lasts at most, for the time of a test.
func SetTurnLimit(t *testing.T, d time.Duration) {
	was := turnLimit
	turnLimit = d
	t.Cleanup(func() { turnLimit = was })
}

// SetAttemptTimeout shortens how long one attempt may take, for the time of a test.
func SetAttemptTimeout(t *testing.T, d time.Duration) {
	was := attemptTimeout
	attemptTimeout = d
	t.Cleanup(func() { attemptTimeout = was })
}
