package server_test

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"auditsink/internal/server"
)

// TestLocal: without tokens, whoever isn't a program of this machine asking this machine is refused.
func TestLocal(t *testing.T) {
	request := func(peer, listening, host string, header http.Header) *http.Request {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "/v1/events", nil)
		require.NoError(t, err)
		r.RemoteAddr, r.Host = peer, host
		if header != nil {
			r.Header = header
		}
		if listening == "" {
			return r
		}
		addr := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(listening))
		return r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, addr))
	}
	const here, there = "127.0.0.1:9464", "192.0.2.1:5555"
	for _, host := range []string{"localhost", "localhost:9464", "LOCALHOST", "127.0.0.1", "127.0.0.1:9464", "127.8.9.1:1", "[::1]:9464", "[::1]", "::1"} {
		require.NoError(t, server.Local(request("127.0.0.1:5555", here, host, nil)), host)
	}
	require.NoError(t, server.Local(request("[::1]:5555", "[::1]:9464", "localhost", nil)))
	require.NoError(t, server.Local(request("[::ffff:127.0.0.1]:5555", "[::ffff:127.0.0.1]:9464", "localhost", nil)))
	for _, site := range []string{"same-origin", "none"} {
		require.NoError(t, server.Local(request("127.0.0.1:5555", here, "localhost", http.Header{"Sec-Fetch-Site": {site}})))
	}

	for _, host := range []string{"", "evil.example", "evil.example:9464", "localhost.evil.example", "evil-localhost", "127.0.0.1.evil.example", "192.0.2.1", "0.0.0.0", "[::]", "127.1", "2130706433", "localhost:9464:1"} {
		require.Error(t, server.Local(request("127.0.0.1:5555", here, host, nil)), host)
	}
	require.ErrorContains(t, server.Local(request(there, here, "localhost", nil)), "another machine")
	require.ErrorContains(t, server.Local(request("[2001:db8::1]:5", here, "localhost", nil)), "another machine")
	require.ErrorContains(t, server.Local(request("@", here, "localhost", nil)), "another machine")
	require.ErrorContains(t, server.Local(request("", here, "localhost", nil)), "another machine")
	require.ErrorContains(t, server.Local(request("127.0.0.1:5555", there, "localhost", nil)), "isn't loopback")
	require.ErrorContains(t, server.Local(request("127.0.0.1:5555", "", "localhost", nil)), "isn't loopback")
	for _, name := range []string{"Forwarded", "Via", "X-Real-Ip", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Anything"} {
		require.ErrorContains(t, server.Local(request("127.0.0.1:5555", here, "localhost", http.Header{name: {""}})), "proxy", name)
	}
	for _, site := range []string{"cross-site", "same-site", "rubbish"} {
		require.ErrorContains(t, server.Local(request("127.0.0.1:5555", here, "localhost", http.Header{"Sec-Fetch-Site": {site}})), "another site")
	}
}
