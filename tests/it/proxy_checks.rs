//! Does the proxy tunnel, refuse and remember?

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    proxy::Proxy,
    scripted::{Reply, Scripted},
    scripted_checks::Client,
};

async fn connect(proxy: &Proxy, authority: &str) -> Client<TcpStream> {
    let mut tcp = TcpStream::connect(proxy.url().strip_prefix("http://").unwrap()).await.unwrap();
    tcp.write_all(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n").as_bytes())
        .await
        .unwrap();
    Client(tcp)
}

#[tokio::test]
async fn a_tunnel_leads_to_the_endpoint_whatever_was_asked() {
    let endpoint = Scripted::start(|_, _| Reply::ok()).await;
    let proxy = Proxy::tunnelling_to(endpoint.addr()).await;

    let mut client = connect(&proxy, "cognito-idp.eu-west-3.amazonaws.com:443").await;

    let mut established = [0; 39];
    client.0.read_exact(&mut established).await.unwrap();
    assert_eq!(&established, b"HTTP/1.1 200 Connection established\r\n\r\n");
    assert_eq!(client.ask("{}").await.status, 200);
    assert_eq!(proxy.connects(), ["cognito-idp.eu-west-3.amazonaws.com:443"]);
    assert_eq!(endpoint.requests().len(), 1);
}

#[tokio::test]
async fn a_refusal_is_an_answer_and_is_remembered() {
    let forbidding = Proxy::refusing(403).await;
    let refused = connect(&forbidding, "a:443").await.answer().await;
    assert_eq!(refused.status, 403);
    connect(&forbidding, "b:443").await.answer().await;
    assert_eq!(forbidding.connects(), ["a:443", "b:443"]);

    let challenging = Proxy::refusing(407).await;
    let challenged = connect(&challenging, "a:443").await.answer().await;
    assert_eq!(challenged.status, 407);
    assert!(challenged.headers.contains_key("proxy-authenticate"));
}
