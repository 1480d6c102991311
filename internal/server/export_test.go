package server

import (
	"net/http"
	"time"
)

// SetClock gives the tokens another clock.
func (t *Tokens) SetClock(now func() time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.now = now
}

// ListenImpatiently is Listen with another bound on how long a client may take to read a part of an answer.
var ListenImpatiently = listen

// Local is what admits without tokens.
func Local(r *http.Request) error { return local(r) }

// Route is a method and path of /v1.
type Route struct {
	Method, Path       string
	Public, Everything bool
}

// Routes lists all of /v1.
func Routes() (all []Route) {
	for _, r := range (&api{}).routes() {
		all = append(all, Route{r.method, r.path, r.access == public, r.access == everything})
	}
	return all
}
