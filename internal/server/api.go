package server

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"auditsink/internal/query"
)

// api answers /v1.
type api struct {
	Options
	exports chan struct{} // has room for as many as may be under way
}

// route is one thing that /v1 does. serve answers, or returns why it can't, before it has written anything.
type route struct {
	method, path string
	access       access
	serve        func(w http.ResponseWriter, r *http.Request, c caller) error
}

// access is who may use a route.
type access uint8

const (
	scoped     access = iota // whoever has a token, within its scope
	everything               // whoever may see everything
	public                   // everybody
)

func (a *api) routes() []route {
	return []route{
		{"GET", "/v1/events", scoped, a.events},
		{"GET", "/v1/events/{id}", scoped, a.event},
		{"GET", "/v1/performance", everything, a.performance},
		{"GET", "/v1/log-level", everything, a.logLevel},
		{"PUT", "/v1/log-level", everything, a.setLogLevel},
		{"GET", "/v1/openapi.json", public, a.describe},
	}
}

// register adds /v1 to mux. What isn't there is told to those alone who may use it: all paths want the same access.
func (a *api) register(mux *http.ServeMux) {
	methods := map[string][]string{}
	for _, r := range a.routes() {
		mux.Handle(r.method+" "+r.path, a.guard(r.access, r.serve))
		methods[r.path] = append(methods[r.path], r.method)
		if r.method == http.MethodGet {
			methods[r.path] = append(methods[r.path], http.MethodHead)
		}
	}
	for path, allowed := range methods {
		mux.Handle(path, a.guard(scoped, func(http.ResponseWriter, *http.Request, caller) error {
			return newProblem(http.StatusMethodNotAllowed, "this can't be done here; allowed are "+strings.Join(allowed, ", ")).with("Allow", strings.Join(allowed, ", "))
		}))
	}
	mux.Handle("/v1/", a.guard(scoped, func(http.ResponseWriter, *http.Request, caller) error {
		return newProblem(http.StatusNotFound, "there is nothing here; /v1/openapi.json tells what there is")
	}))
}

// guard lets in who may, and turns an error into an answer. There are no headers for other sites (CORS): a page of theirs gets nothing.
func (a *api) guard(who access, serve func(http.ResponseWriter, *http.Request, caller) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "private, no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cross-Origin-Resource-Policy", "same-origin")
		var c caller
		var err error
		if who != public {
			c, err = a.admit(r)
		}
		if err == nil && who == everything && !c.scope.All() {
			err = newProblem(http.StatusForbidden, "this wants a token for everything, not for some organizations").
				with("WWW-Authenticate", `Bearer realm="auditsink", error="insufficient_scope"`)
		}
		if err == nil {
			err = serve(w, r, c)
		}
		if err != nil {
			a.fail(w, r, c, err)
		}
	})
}

// fail answers with what is wrong. What the database says isn't for whoever asked: it goes to the log.
func (a *api) fail(w http.ResponseWriter, r *http.Request, c caller, err error) {
	if r.Context().Err() != nil {
		return // whoever asked has gone
	}
	var p *problem
	if !errors.As(err, &p) {
		p = explain(err)
		if p.Status >= http.StatusInternalServerError {
			a.Log.Warn("a read failed", zap.String("route", r.Pattern), zap.String("token", c.name), zap.Int("status", p.Status), zap.Error(err))
		}
	}
	if p.Status == http.StatusUnauthorized || p.Status == http.StatusForbidden {
		a.Log.Info("a read was refused", zap.String("route", r.Pattern), zap.String("token", c.name), zap.String("peer", r.RemoteAddr), zap.String("why", p.Detail))
	}
	if err := p.write(w); err != nil {
		a.Log.Error("answer with a problem", zap.Error(err))
	}
}

// explain makes a problem of the error of a read.
func explain(err error) *problem {
	failure := query.FailureOf(err)
	if errors.Is(err, errUnwritable) {
		failure = query.Unexplained
	}
	switch failure {
	case query.Invalid:
		var invalid *query.InvalidError
		p := newProblem(http.StatusBadRequest, err.Error())
		if errors.As(err, &invalid) {
			p.Detail, p.Parameter = invalid.Error(), invalid.Parameter
		}
		return p
	case query.NotFound:
		return newProblem(http.StatusNotFound, "there is no such event, or not for you")
	case query.Busy:
		return newProblem(http.StatusServiceUnavailable, "too many read at once: ask again in a moment").with("Retry-After", "1")
	case query.TimedOut:
		return newProblem(http.StatusGatewayTimeout, "it took longer than AUDITSINK_QUERY_TIMEOUT: ask for a shorter range, or by what has an index")
	case query.Unavailable:
		return newProblem(http.StatusServiceUnavailable, "the database isn't there for now: the worker's log says why").with("Retry-After", "5")
	case query.Unexplained:
	}
	return newProblem(http.StatusInternalServerError, "it failed: the worker's log says why")
}

// parameters are those of the request, each known. A query that can't be read as a whole is refused: package http would pass over a part of it.
func parameters(r *http.Request, known ...string) (url.Values, error) {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, newProblem(http.StatusBadRequest, "the query can't be read: escape what isn't a letter or a digit (a semicolon is %3B)")
	}
	for name := range values {
		if !slices.Contains(known, name) {
			return nil, newProblem(http.StatusBadRequest, "there is no such parameter here; there are "+strings.Join(known, ", ")).of(name)
		}
	}
	return values, nil
}

func (a *api) performance(w http.ResponseWriter, r *http.Request, _ caller) error {
	if _, err := parameters(r); err != nil {
		return err
	}
	if a.Report == nil {
		return newProblem(http.StatusNotFound, "this worker makes no performance report")
	}
	report, err := a.Report(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, "application/json", http.StatusOK, report)
}

// level is what /v1/log-level takes and gives.
type level struct {
	Level string `json:"level"`
}

func (a *api) logLevel(w http.ResponseWriter, r *http.Request, _ caller) error {
	if _, err := parameters(r); err != nil {
		return err
	}
	if a.Level == nil {
		return newProblem(http.StatusNotFound, "the level of the log can't be changed here")
	}
	return writeJSON(w, "application/json", http.StatusOK, level{a.Level.Level().String()})
}

// setLogLevel changes the least severe messages logged, until the worker ends.
func (a *api) setLogLevel(w http.ResponseWriter, r *http.Request, c caller) error {
	if _, err := parameters(r); err != nil {
		return err
	}
	if a.Level == nil {
		return newProblem(http.StatusNotFound, "the level of the log can't be changed here")
	}
	wanted, err := readLevel(http.MaxBytesReader(w, r.Body, 1<<10))
	if err != nil {
		return newProblem(http.StatusBadRequest, `want {"level":"debug"}, or info, warn or error`)
	}
	from := a.Level.Level()
	tell := func() {
		a.Log.Warn("the level of the log changes", zap.Stringer("from", from), zap.Stringer("to", wanted), zap.String("token", c.name))
	}
	if wanted > from { // while it can be seen
		tell()
	}
	a.Level.SetLevel(wanted)
	if wanted < from {
		tell()
	}
	return a.logLevel(w, r, c)
}

func readLevel(body io.Reader) (zapcore.Level, error) {
	var l level
	decoder := json.NewDecoder(body)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&l); err != nil {
		return 0, err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return 0, errors.New("there is more than one value")
	}
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, l.Level) {
		return 0, errors.New("no such level")
	}
	return zapcore.ParseLevel(l.Level)
}
