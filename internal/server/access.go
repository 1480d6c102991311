package server

import (
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"auditsink/internal/query"
)

// caller is who asks: the name of a token, and what it may see.
type caller struct {
	name  string
	scope query.Scope
}

// admit tells who asks, or is a problem why they aren't answered. With a file of tokens it takes one; without, whoever is on this machine may ask for
// everything.
func (a *api) admit(r *http.Request) (caller, error) {
	if a.Tokens == nil {
		if err := local(r); err != nil {
			return caller{}, newProblem(http.StatusForbidden, err.Error()+": without tokens (AUDITSINK_TOKENS_FILE) /v1 answers this machine only")
		}
		return caller{name: "loopback", scope: query.Everything()}, nil
	}
	headers := r.Header.Values("Authorization")
	if len(headers) != 1 {
		return caller{}, unauthorized("want one header Authorization: Bearer TOKEN", "")
	}
	scheme, token, _ := strings.Cut(headers[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return caller{}, unauthorized("want the header Authorization: Bearer TOKEN", "")
	}
	holder, known := a.Tokens.Find(strings.Trim(token, " "))
	if !known {
		return caller{}, unauthorized("the token isn't known here, or no longer", `, error="invalid_token"`)
	}
	return caller{name: holder.Name, scope: holder.Scope}, nil
}

// unauthorized asks for a token (RFC 6750).
func unauthorized(detail, code string) *problem {
	return newProblem(http.StatusUnauthorized, detail).with("WWW-Authenticate", `Bearer realm="auditsink"`+code)
}

// local is nil where a request comes from a program of this machine, and wasn't sent by a web page or passed on for somebody else: both ends of the
// connection are loopback addresses; no proxy says that it forwards; the name that was asked for is this machine's own, since a page from elsewhere can have
// its own name resolve to 127.0.0.1 (DNS rebinding); and the browser, if it is one, doesn't say that another site asks.
func local(r *http.Request) error {
	listening, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	switch {
	case !loopback(r.RemoteAddr):
		return errors.New("the request comes from another machine")
	case listening == nil || !loopback(listening.String()):
		return errors.New("the request came in by an address that isn't loopback")
	case forwarded(r.Header):
		return errors.New("the request was forwarded by a proxy")
	case !ownName(r.Host):
		return errors.New("the host asked for is neither localhost nor a loopback address")
	}
	if site := r.Header.Get("Sec-Fetch-Site"); site != "" && site != "same-origin" && site != "none" {
		return errors.New("the request was made by a page of another site")
	}
	return nil
}

// loopback tells whether host:port is an address of this machine alone.
func loopback(hostPort string) bool {
	at, err := netip.ParseAddrPort(hostPort)
	return err == nil && at.Addr().Unmap().IsLoopback()
}

// forwarded tells whether a proxy says that it passes the request on.
func forwarded(h http.Header) bool {
	for name := range h {
		switch {
		case name == "Forwarded", name == "Via", name == "X-Real-Ip", strings.HasPrefix(name, "X-Forwarded"):
			return true
		}
	}
	return false
}

// ownName tells whether the Host header names this machine as only this machine does.
func ownName(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	} else {
		host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	}
	if strings.EqualFold(host, "localhost") {
		return true
	}
	at, err := netip.ParseAddr(host)
	return err == nil && at.Unmap().IsLoopback()
}
