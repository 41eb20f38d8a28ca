// A QUIC server on quic-go in front of an MQTT broker: relays the first bidirectional stream of each connection to a
// TCP connection. Options, commands and events are those of every foreign front, see ../../foreign_front.py.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/logging"
)

const relayBuffer = 64 * 1024

// session is one client's connection with its stream, once there is one.
type session struct {
	conn   quic.Connection
	stream quic.Stream
}

type server struct {
	broker string

	mutex    sync.Mutex
	sessions map[*session]struct{}
}

var output sync.Mutex

// tell prints one event.
func tell(event string, fields map[string]any) {
	line := map[string]any{"event": event}
	for name, value := range fields {
		line[name] = value
	}
	text, err := json.Marshal(line)
	if err != nil {
		log.Fatal(err)
	}
	output.Lock()
	defer output.Unlock()
	fmt.Printf("%s\n", text)
}

func (s *server) serve(conn quic.EarlyConnection) {
	current := &session{conn: conn}
	s.mutex.Lock()
	s.sessions[current] = struct{}{}
	s.mutex.Unlock()
	<-conn.HandshakeComplete()
	state := conn.ConnectionState().TLS
	tell("connected", map[string]any{
		"peer":               conn.RemoteAddr().String(),
		"alpn":               state.NegotiatedProtocol,
		"resumed":            state.DidResume,
		"early_data":         conn.ConnectionState().Used0RTT,
		"client_certificate": len(state.PeerCertificates) > 0,
	})
	if stream, err := conn.AcceptStream(context.Background()); err == nil {
		s.mutex.Lock()
		current.stream = stream
		s.mutex.Unlock()
		s.relay(conn, stream)
	}
	<-conn.Context().Done()
	s.mutex.Lock()
	delete(s.sessions, current)
	s.mutex.Unlock()
	tell("closed", cause(context.Cause(conn.Context())))
}

// relay copies both ways until either side ends; whatever ends the broker's side ends the stream with FIN.
func (s *server) relay(conn quic.Connection, stream quic.Stream) {
	broker, err := net.Dial("tcp", s.broker)
	if err != nil {
		conn.CloseWithError(1, "the broker cannot be reached")
		return
	}
	defer broker.Close()
	go func() {
		io.Copy(stream, broker)
		stream.Close()
	}()
	peer := conn.RemoteAddr().String()
	buffer := make([]byte, relayBuffer)
	for {
		size, err := stream.Read(buffer)
		if now := conn.RemoteAddr().String(); now != peer {
			peer = now
			tell("moved", map[string]any{"peer": peer})
		}
		if _, wrong := broker.Write(buffer[:size]); err != nil || wrong != nil {
			return
		}
	}
}

// cause says who closed a connection, and with which code.
func cause(err error) map[string]any {
	var application *quic.ApplicationError
	var transport *quic.TransportError
	switch {
	case errors.As(err, &application):
		return map[string]any{"by_peer": application.Remote, "application": true, "code": application.ErrorCode}
	case errors.As(err, &transport):
		return map[string]any{"by_peer": transport.Remote, "application": false, "code": transport.ErrorCode}
	default:
		return map[string]any{"by_peer": false, "application": false, "code": nil, "error": fmt.Sprint(err)}
	}
}

// obey carries out one command for every connection there is.
func (s *server) obey(command string, code uint64) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	for current := range s.sessions {
		switch command {
		case "close":
			current.conn.CloseWithError(quic.ApplicationErrorCode(code), "")
		case "fin":
			current.stream.Close()
		case "reset":
			current.stream.CancelWrite(quic.StreamErrorCode(code))
		default:
			log.Fatalf("unknown command %q", command)
		}
	}
}

// tracer looks out for key updates.
func tracer(context.Context, logging.Perspective, quic.ConnectionID) *logging.ConnectionTracer {
	return &logging.ConnectionTracer{UpdatedKey: func(_ logging.KeyPhase, byPeer bool) {
		tell("key_updated", map[string]any{"by_peer": byPeer})
	}}
}

func tlsConfig(cert, key, clientCA, alpn string) *tls.Config {
	certificate, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		log.Fatal(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{certificate}, NextProtos: []string{alpn}}
	if clientCA != "" {
		pem, err := os.ReadFile(clientCA)
		if err != nil {
			log.Fatal(err)
		}
		config.ClientAuth = tls.RequireAndVerifyClientCert
		config.ClientCAs = x509.NewCertPool()
		if !config.ClientCAs.AppendCertsFromPEM(pem) {
			log.Fatalf("%s holds no certificate", clientCA)
		}
	}
	return config
}

func main() {
	listen := flag.String("listen", "", "HOST:PORT")
	broker := flag.String("broker", "", "HOST:PORT")
	cert := flag.String("cert", "", "PEM file")
	key := flag.String("key", "", "PEM file")
	clientCA := flag.String("client-ca", "", "PEM file; clients must show a certificate of this authority")
	alpn := flag.String("alpn", "mqtt", "what to offer")
	retry := flag.Bool("retry", false, "send a Retry first")
	earlyData := flag.Bool("early-data", false, "take 0-RTT")
	flag.Parse()

	address, err := net.ResolveUDPAddr("udp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	socket, err := net.ListenUDP("udp", address)
	if err != nil {
		log.Fatal(err)
	}
	transport := &quic.Transport{Conn: socket, VerifySourceAddress: func(net.Addr) bool { return *retry }}
	listener, err := transport.ListenEarly(tlsConfig(*cert, *key, *clientCA, *alpn), &quic.Config{
		MaxIdleTimeout: time.Hour, // the client's counts
		Allow0RTT:      *earlyData,
		Tracer:         tracer,
	})
	if err != nil {
		log.Fatal(err)
	}
	s := &server{broker: *broker, sessions: map[*session]struct{}{}}
	tell("listening", nil)
	go func() {
		for {
			conn, err := listener.Accept(context.Background())
			if err != nil {
				return
			}
			go s.serve(conn)
		}
	}()

	// SIGTERM and the end of the input end it as EMQX's listener does: CONNECTION_CLOSE 0.
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		commands := bufio.NewScanner(os.Stdin)
		for commands.Scan() {
			var command string
			var code uint64
			fmt.Sscan(commands.Text(), &command, &code)
			s.obey(command, code)
		}
		ended <- syscall.SIGTERM
	}()
	<-ended
	s.obey("close", 0)
	transport.Close()
}
